"""Every way to a model gives the same one: weights, mixing, omegas, tokenizer, chat format, stop tokens, dtype, length.

Each route is followed from its own entry point to the place where it uses the model, which says there what it holds.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import save_file

import sm_diffusion
from sm_diffusion import registry
from sm_diffusion.app.evaluate import evaluate
from sm_diffusion.app.evaluation import Evaluation
from sm_diffusion.app.model import Model
from sm_diffusion.app.train import train
from sm_diffusion.cli import main as cli
from sm_diffusion.config.compose import compose_config, restore_train_config
from sm_diffusion.data.chat.format import ChatFormat, stop_ids_of
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.denoisers.checkpoints.weights import PUBLISHED_OMEGAS, read_provenance, read_weights
from sm_diffusion.diffusion.predictor import Predictor, SoftMaskPredictor
from sm_diffusion.evaluation.benchmarks.answers import AnswerPlan
from sm_diffusion.evaluation.benchmarks.evaluator import ScoreEvaluator
from sm_diffusion.evaluation.harness.adapter import Harness
from sm_diffusion.evaluation.harness.settings import HarnessSettings
from sm_diffusion.types import UserError
from tests.helpers import chats
from tests.helpers.templates import TURN, write_model

OLD = Path(__file__).parents[1] / "golden" / "runs"
TEXT, TALK = "the cat sat", [{"role": "user", "content": "add 3"}]
CORPUS = ["data=text_files", "data.paths=[corpus.jsonl]", "data.tokenizer.kind=char", "data.length=16",
          "data.validation_fraction=0.2", "data.cache_dir=cache"]  # fmt: skip
SIZES = ["model=dit_tiny", "model.width=16", "model.num_blocks=1", "model.num_heads=2", "model.cond_width=8"]
CHATS = ["data=chat_files", "data.paths=[chats.jsonl]", "data.validation_fraction=0.2", "data.length=128",
         "data.cache_dir=cache", "data.tokenizer.kind=hub", "data.tokenizer.path=talking-base",
         "data.tokenizer.mask=token"]  # fmt: skip


@dataclass(frozen=True)
class Held:
    """What a route holds; None: this route has no such thing."""

    weights: str
    mixing: str | None
    omegas: dict[str, float]
    dtype: torch.dtype
    text: list[int] | None
    talk: list[int] | None
    stop_ids: frozenset[int] | None
    length: int | None


class Seen(BaseException):
    """Ends a route where it uses its model."""

    def __init__(self, held: Held) -> None:
        self.held = held


def held(
    predictor: Predictor,
    tokenizer: TextTokenizer | None,
    chat: ChatFormat | None,
    *,
    stop_ids: frozenset[int] | None,
    length: int | None,
) -> Held:
    soft = isinstance(predictor, SoftMaskPredictor)
    digest = hashlib.sha256()
    for name, parameter in sorted(predictor.denoiser.named_parameters()):
        digest.update(name.encode() + parameter.detach().float().numpy().tobytes())
    return Held(
        weights=digest.hexdigest(),
        mixing=predictor.mixing.__name__ if soft else None,
        omegas={name: float(value) for name, value in predictor.soft_mask.state_dict().items()} if soft else {},
        dtype=next(predictor.denoiser.parameters()).dtype,
        text=None if tokenizer is None else tokenizer.encode_batch([TEXT])[0],
        talk=None if chat is None else chat.prompt(TALK),
        stop_ids=stop_ids,
        length=length,
    )


def differences(one: Held, other: Held) -> list[str]:
    """Names of what both have and is not the same."""
    pairs = [(field.name, getattr(one, field.name), getattr(other, field.name)) for field in fields(Held)]
    return [name for name, a, b in pairs if a != b and (name == "mixing" or (a is not None and b is not None))]


def of_model(model: Model) -> Held:
    return held(model.predictor, model.tokenizer, model.chat, stop_ids=model.stop_ids, length=model.length)


# --------------------------------------------------------------------------------------------------------- the routes


def seen(action: Callable[[], object]) -> Held:
    with pytest.raises(Seen) as caught:
        action()
    return caught.value.held


def sampled(self: Model, rows: Any, sampler: Any, **_: Any) -> NoReturn:
    stop_ids = self.stop_ids
    raise Seen(held(sampler.predictor, self.tokenizer, self.chat, stop_ids=stop_ids, length=self.length))


def by_sample(path: str, patch: pytest.MonkeyPatch, _: list[str]) -> Held:
    patch.setattr(Model, "run_sampler", sampled)
    return seen(lambda: cli.main(["sample", path, "--device", "cpu"]))


def by_chat(path: str, patch: pytest.MonkeyPatch, _: list[str]) -> Held:
    patch.setattr(Model, "run_sampler", sampled)
    patch.setattr("sys.stdin", io.StringIO("add\n"))
    return seen(lambda: cli.main(["chat", path, "--device", "cpu", "--length", "8", "--steps", "2"]))


def by_lm_eval(path: str, patch: pytest.MonkeyPatch, _: list[str]) -> Held:
    # What the class that lm_eval runs does; the package itself need not be installed.
    harness = Harness(sm_diffusion.load(path, "ema", "cpu"), HarnessSettings.parse({}))
    texts = harness.texts
    predictor = harness.likelihood.predictor
    return held(predictor, texts.tokenizer, texts.chat, stop_ids=texts.stop_ids, length=harness.length)


def by_evaluator(name: str, *options: str) -> Callable[[str, pytest.MonkeyPatch, list[str]], Held]:
    def route(path: str, patch: pytest.MonkeyPatch, given: list[str]) -> Held:
        def built(self: Any, context: Evaluation) -> NoReturn:
            model = context.model
            own = context.datamodule(model.run.data).tokenizer
            chat = own if isinstance(own, ChatFormat) else None
            tokenizer = model.tokenizer if chat is not None else own
            raise Seen(held(model.predictor, tokenizer, chat, stop_ids=model.stop_ids, length=model.length))

        patch.setattr(registry.find("evaluator", name), "build", built)
        words = [f"checkpoint={path}", "accelerator=cpu", f"evaluator={name}", *options, "output_dir=out", *given]
        return seen(lambda: evaluate(compose_config("eval", words)))

    return route


def by_scores(path: str, patch: pytest.MonkeyPatch, given: list[str]) -> Held:
    def scored(self: ScoreEvaluator, _: Any) -> NoReturn:
        plan = self.plan
        stop_ids = stop_ids_of(plan.tokenizer, plan.chat)
        predictor = self.settings[0].sampler.predictor
        # Benchmarks go up to the positions of the network, which may be more than it was trained on.
        raise Seen(held(predictor, plan.tokenizer, plan.chat, stop_ids=stop_ids, length=None))

    shutil.rmtree("out", ignore_errors=True)
    patch.setattr(AnswerPlan, "prompt_ids", lambda self: {})
    patch.setattr(ScoreEvaluator, "evaluate", scored)
    row = {"question": "What is 1 plus 2?", "answer": "It is 3.\n#### 3"}
    Path("gsm8k.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    words = [f"checkpoint={path}", "accelerator=cpu", "evaluator=gsm8k", "evaluator.path=gsm8k.jsonl",
             "evaluator.new_tokens=8", "evaluator.nfe=[1]", "output_dir=out", *given]  # fmt: skip
    return seen(lambda: evaluate(compose_config("eval", words)))


def by_init_from(path: str, patch: pytest.MonkeyPatch, settings_of: str, *, weights: str) -> Held:
    provenance = read_provenance(Path(settings_of))
    assert provenance is not None
    config = restore_train_config(provenance)
    config.init_from, config.init_weights, config.output_dir, config.name = path, weights, "started", "started"

    def built(config: Any, predictor: Predictor, **_: Any) -> NoReturn:
        raise Seen(held(predictor, None, None, stop_ids=None, length=config.data.length))

    patch.setattr("sm_diffusion.app.train.build_module", built)
    return seen(lambda: train(config))


EVALUATIONS = {
    "perplexity": by_evaluator("perplexity"),
    "zero_shot": by_evaluator("zero_shot", "evaluator.sources=[corpus.jsonl]"),
    "generative": by_evaluator("generative", "evaluator.judge=null"),
    "scores": by_scores,
}
COMMANDS = {"sample": by_sample, "chat": by_chat, "lm_eval": by_lm_eval}


# --------------------------------------------------------------------------------------------------------- the models


def publish(folder: Path) -> None:
    """The golden soft-masked run as the authors' trainer would have saved it, and as safetensors."""
    raw, ema = (read_weights(folder / "soft/checkpoints/last.ckpt", weights=kind) for kind in ("raw", "ema"))
    theirs = {ours: name for name, ours in PUBLISHED_OMEGAS.items()}
    head = {f"tran_head.{theirs[name]}": value for name, value in raw.soft_mask.items()}
    network = {f"backbone.{name}": value for name, value in raw.denoiser.items()}
    tree = {"state_dict": network | head, "ema": {"shadow_params": list(ema.denoiser.values())}, "global_step": 4}
    torch.save(tree, folder / "published.ckpt")
    average = {f"backbone.{name}": value.contiguous() for name, value in ema.denoiser.items()}
    save_file(average | head, folder / "published.safetensors")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models of every kind."""
    folder = tmp_path_factory.mktemp("routes") / "all"
    shutil.copytree(OLD, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        chats.write_chats(Path("chats.jsonl"))
        write_model(Path("talking-base"))
        for name in ("linear", "spherical"):
            mixing = ["soft_mask=spherical"] if name == "spherical" else []
            words = [*chats.overrides(Path(), name, "trainer.max_steps=1"), *CHATS, "model.path=talking-base", *mixing]
            train(compose_config("train", words))
            assert cli.main(["convert", "merge", f"{name}/adapter", f"{name}-merged", "--dtype", "float32"]) == 0
        publish(folder)
        assert cli.main(["convert", "adapter", "spherical/checkpoints/last.ckpt", "spherical-again"]) == 0
        for name, kind in (("soft", "ema"), ("spherical", "raw")):
            words = ["convert", "export", f"{name}/checkpoints/last.ckpt", f"{name}.safetensors", "--weights", kind]
            assert cli.main(words) == 0
    return folder


@pytest.fixture
def here(models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(models)
    shutil.rmtree("started", ignore_errors=True)
    return models


# ---------------------------------------------------------------------------------------------------------- the tests

KINDS = {
    # kind: (path, what eval.py is given beside, mixing)
    "run checkpoint": ("soft/checkpoints/last.ckpt", [], "linear"),
    "run folder": ("spherical", [], "spherical"),
    "adapter folder, linear": ("linear/adapter", CHATS, "linear"),
    "adapter folder, spherical": ("spherical/adapter", CHATS, "spherical"),
    "merged folder": ("spherical-merged", CHATS, "spherical"),
    "exported file": ("soft.safetensors", [], "linear"),
    "published .ckpt": ("published.ckpt", [*SIZES, *CORPUS], "linear"),
    "published .safetensors": ("published.safetensors", [*SIZES, *CORPUS], "linear"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_route_holds_the_same_model(here: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path, given, mixing = KINDS[kind]
    published = kind.startswith("published")
    reference = of_model(sm_diffusion.load(path, device="cpu", overrides=given if published else []))
    assert reference.mixing == ("slerp_to_mean" if mixing == "spherical" else mixing)  # its name in older runs
    talks = "run checkpoint" not in kind and "soft" not in path and not published
    assert (reference.talk is not None) == talks
    assert reference.stop_ids == (frozenset({256, TURN}) if talks else frozenset())
    assert (reference.length, reference.dtype) == (128 if talks else 16, torch.float32)
    # A published checkpoint needs model=... and data=..., which these commands do not take.
    for name, route in ({} if published else COMMANDS).items():
        with monkeypatch.context() as patch:
            assert differences(reference, route(path, patch, [])) == [], name
    for name, route in EVALUATIONS.items():
        if talks and name == "zero_shot":
            continue  # it packs plain text
        with monkeypatch.context() as patch:
            assert differences(reference, route(path, patch, given)) == [], name


@pytest.mark.parametrize(
    ("path", "settings_of", "weights"),
    [
        ("soft/checkpoints/last.ckpt", "soft/checkpoints/last.ckpt", "ema"),
        ("spherical", "spherical/checkpoints/last.ckpt", "raw"),
        ("soft.safetensors", "soft/checkpoints/last.ckpt", "ema"),
        ("spherical.safetensors", "spherical/checkpoints/last.ckpt", "raw"),
        ("published.ckpt", "soft/checkpoints/last.ckpt", "ema"),
        ("published.safetensors", "soft/checkpoints/last.ckpt", "ema"),
    ],
)
def test_a_run_starts_from_the_model_that_is_opened(
    here: Path, monkeypatch: pytest.MonkeyPatch, path: str, settings_of: str, weights: str
) -> None:
    given = [*SIZES, *CORPUS] if path.startswith("published") else []
    reference = of_model(sm_diffusion.load(path, device="cpu", overrides=given))
    assert differences(reference, by_init_from(path, monkeypatch, settings_of, weights=weights)) == []


@pytest.mark.parametrize("path", ["spherical/adapter", "spherical-merged"])
def test_a_run_does_not_start_from_a_folder(here: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    with pytest.raises(UserError, match=r"init_from=spherical.*: .* folder is no checkpoint: .* set model\.path to it"):
        by_init_from(path, monkeypatch, "spherical/checkpoints/last.ckpt", weights="raw")


def test_what_convert_writes_is_the_model_it_was_given(here: Path) -> None:
    run = of_model(sm_diffusion.load("spherical", device="cpu"))
    for path in ("spherical/adapter", "spherical-again", "spherical.safetensors"):
        assert differences(run, of_model(sm_diffusion.load(path, device="cpu"))) == [], path
    merged = of_model(sm_diffusion.load("spherical-merged", device="cpu"))
    assert differences(run, merged) == ["weights"], "the adapter is added to its base's matrices"
    soft = of_model(sm_diffusion.load("soft", device="cpu"))
    for path, given in (("soft.safetensors", []), ("published.ckpt", [*SIZES, *CORPUS])):
        assert differences(soft, of_model(sm_diffusion.load(path, device="cpu", overrides=given))) == [], path


def test_a_wrong_value_is_noticed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = of_model(sm_diffusion.load("spherical/adapter", device="cpu"))
    wrong = {"weights": "0", "mixing": None, "omegas": {}, "dtype": torch.bfloat16, "text": [1], "talk": [1],
             "stop_ids": frozenset({256}), "length": 131_072}  # fmt: skip
    for name, value in wrong.items():
        assert differences(right, replace(right, **{name: value})) == [name]
    # And in the files: a folder that records another mixing, or another longest text.
    shutil.copytree("spherical/adapter", "tampered", dirs_exist_ok=True)
    card = json.loads(Path("tampered/smd_model.json").read_text(encoding="utf-8"))
    Path("tampered/smd_model.json").write_text(json.dumps(card | {"mixing": "linear", "length": 64}), encoding="utf-8")
    with monkeypatch.context() as patch:
        assert differences(right, by_scores("tampered", patch, [])) == ["mixing"]
    assert differences(right, of_model(sm_diffusion.load("tampered", device="cpu"))) == ["mixing", "length"]


def test_a_folder_records_what_opens_it(here: Path) -> None:
    for folder in ("spherical/adapter", "spherical-again", "spherical-merged"):
        card = json.loads((here / folder / "smd_model.json").read_text(encoding="utf-8"))
        assert card["tokenizer"] == {"kind": "hub", "mask": "token"}
        assert (card["chat"], card["length"], card["soft_mask"]) == ("template", 128, True)
        assert (card["mixing"], card["objective"]["name"]) == ("spherical", "sft")
        assert card["schedule"]["name"] == "log_linear"
        assert (here / folder / "tokenizer.json").is_file()


def test_a_mixing_that_contradicts_the_record_is_refused(here: Path) -> None:
    with pytest.raises(UserError, match=r"soft_mask\.mixing=spherical: linear/adapter was trained with linear"):
        sm_diffusion.load("linear/adapter", overrides=["soft_mask.mixing=spherical"])


def test_another_tokenizer_than_the_checkpoints_is_refused(here: Path) -> None:
    words = ["checkpoint=soft", "accelerator=cpu", "output_dir=out", *CORPUS, "data.tokenizer.kind=byte"]
    with pytest.raises(UserError, match=r"data=text_files: its tokenizer \(byte, 258 ids\) is not that of soft \("):
        evaluate(compose_config("eval", words))
