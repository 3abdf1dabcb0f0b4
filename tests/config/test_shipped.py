"""Every shipped configuration composes and validates, and runs two steps on the CPU at a shrunken size."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import math
import re
from pathlib import Path

import pytest

from sm_diffusion.app import build
from sm_diffusion.app.train import train
from sm_diffusion.app.validate import validate_train
from sm_diffusion.config.compose import compose_config
from sm_diffusion.denoisers.pretrained.settings import HFSettings
from sm_diffusion.paths import CONF
from sm_diffusion.reproduction.experiment import list_experiments, load_experiment
from sm_diffusion.types import UserError
from tests.helpers.runs import write_corpus

GROUPS = (
    *("variant", "soft_mask", "objective", "schedule", "optim"),
    *("trainer", "strategy", "logger", "callbacks", "peft"),
)
RUN_GROUPS = ("variant", "soft_mask", "optim", "objective", "peft")
MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
DATA = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
EXPERIMENTS = [load_experiment(name) for name in list_experiments()]
ROWS = [f"{e.name}/{row}" for e in EXPERIMENTS for row in e.rows if row not in e.eval_rows]
# The others differ from these in values: they are composed by default, and run with -m slow.
REPRESENTATIVES = (
    *("quickstart/pretrain", "quickstart/sm_compute", "owt_continuation/sm_updates", "code_dream/sm"),
    *("ablation_switch/first_half", "mixing/spherical", "mixing/temperature", "mixing/frozen"),
)
OWN_FILES = ("text_files", "chat_files", "dream_chat_files")
SHRINK_DIT = ["model.width=16", "model.num_blocks=1", "model.num_heads=2", "model.cond_width=8"]
# Published backbones run with random weights of their architecture: nothing is downloaded.
SHRINK_HF = [
    "model.path=null",
    "model.shape.vocab_size=0",
    "model.shape.width=16",
    "model.shape.ffn_width=24",
    "model.shape.num_layers=1",
    "model.shape.num_heads=2",
    "model.shape.num_key_heads=1",
]
OPTIONS = [(group, path.stem) for group in GROUPS for path in sorted((CONF / group).glob("*.yaml"))]


@pytest.fixture(autouse=True)
def _logged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)


def needed(choice: str) -> list[str]:
    """What an option cannot do without: adapters need a backbone of transformers."""
    return ["model=qwen2_tiny"] if choice.startswith("peft=") and choice != "peft=none" else []


def compose_valid(tmp_path: Path, *overrides: str) -> None:
    config = compose_config("train", [f"output_dir={tmp_path / 'run'}", *overrides])
    config.init_from = None  # another run's checkpoint
    validate_train(config)


@pytest.mark.parametrize(("model", "data"), itertools.product(MODELS, DATA))
def test_models_and_corpora(tmp_path: Path, model: str, data: str) -> None:
    compose_valid(tmp_path, f"model={model}", f"data={data}", *(["data.paths=[x]"] if data in OWN_FILES else []))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, option: str) -> None:
    if option.startswith("deepspeed"):  # composes everywhere, is valid on CUDA with the package only
        assert compose_config("train", [f"{group}={option}"]).strategy.name == "deepspeed"
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
        with pytest.raises(UserError, match=r"strategy\.name=deepspeed: not installed"):
            compose_valid(tmp_path, f"{group}={option}", "trainer.accelerator=cpu")
        return
    compose_valid(tmp_path, f"{group}={option}", *needed(f"{group}={option}"))


RUNS = [f"model={m}" for m in MODELS] + [f"{g}={o}" for g, o in OPTIONS if g in RUN_GROUPS]
RUNS += [
    pytest.param(f"experiments={row}", marks=() if row in REPRESENTATIVES else pytest.mark.slow)
    for row in ROWS
]


@pytest.mark.parametrize("choice", RUNS)
def test_two_steps_at_a_shrunken_size(tmp_path_factory: pytest.TempPathFactory, choice: str) -> None:
    root = tmp_path_factory.getbasetemp() / "shrunken"
    corpus = root / "corpus"
    if not corpus.exists():
        write_corpus(corpus)
    if choice.startswith("peft=qlora") and importlib.util.find_spec("bitsandbytes") is None:
        pytest.skip("bitsandbytes is not installed")
    chosen = compose_config("train", [choice, *needed(choice)]).model
    shrink = SHRINK_HF if isinstance(chosen, HFSettings) else SHRINK_DIT
    config = compose_config(
        "train",
        [
            choice,
            *needed(choice),
            "debug=two_steps",
            *shrink,
            f"output_dir={root / re.sub('[^a-z0-9_]', '-', choice)}",
            "callbacks.plots=false",
            "trainer.val_every_steps=0",
            "overwrite=true",
        ],
    )
    text = compose_config("train", ["data=text_files", f"data.paths=[{corpus}]", "data.tokenizer.kind=char"]).data
    for key in ("length", "global_batch_sequences", "eval_batch_sequences", "max_validation_sequences"):
        setattr(text, key, getattr(config.data, key))
    text.validation_fraction, text.cache_dir = 0.2, str(root / "cache")
    config.data, config.init_from = text, None
    if config.variant.feeds_back:  # switched on in the middle of a long run
        config.variant = dataclasses.replace(config.variant, start_step=min(config.variant.start_step, 1))
    out = train(config)
    assert out["compute"]["steps"] == 2
    assert math.isfinite(out["metrics"]["val/nll"])


def test_quickstart_rows_are_equal_in_what_they_claim() -> None:
    """sm_updates: the steps of binary. sm_compute: its FLOPs, to less than one step."""
    rows = {name: compose_config("train", [f"experiments=quickstart/{name}"]) for name in
            ("binary", "sm_updates", "sm_compute")}
    binary = rows["binary"]
    for row in rows.values():
        assert (row.data, row.model, row.optim, row.seed, row.init_from) == (
            binary.data, binary.model, binary.optim, binary.seed, binary.init_from)
    assert rows["sm_updates"].trainer == binary.trainer
    shape = binary.model.shape(28)
    blocks, head = shape.flops_per_token(binary.data.length)
    share = build.build_objective(binary, mask_id=27).masked_share()
    tokens = binary.data.global_batch_sequences * binary.data.length
    flops = 3 * binary.trainer.max_steps * tokens * (blocks + share * head)
    assert rows["sm_compute"].trainer.max_flops == pytest.approx(flops, rel=1e-3)
    assert rows["sm_compute"].trainer.max_flops <= flops * (1 + 1 / (4 * binary.trainer.max_steps))
