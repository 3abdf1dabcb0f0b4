"""`sm_diffusion.load` opens whatever a run leaves: checkpoints without their corpus, chat, adapters, model folders."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import sm_diffusion
from sm_diffusion.app.train import train
from sm_diffusion.cli import main as cli
from sm_diffusion.config.compose import compose_config
from sm_diffusion.data.chat.format import ChatTemplate, RoleLines
from sm_diffusion.data.tokenizers.base import ByteTokenizer
from sm_diffusion.diffusion.predictor import HardMaskPredictor, SoftMaskPredictor
from sm_diffusion.types import UserError
from tests.helpers import chats, runs
from tests.helpers.templates import MASK, TURN, tiny_template_tokenizer, write_model

QUESTION = [{"role": "user", "content": "add 3"}]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loading")


@pytest.fixture(scope="module")
def template_run(root: Path) -> Path:
    """Adapters on a base whose tokenizer has a chat template."""
    folder = root / "template"
    folder.mkdir()
    base = write_model(root / "template-base")
    hub = [f"model.path={base}", "data.tokenizer.kind=hub", f"data.tokenizer.path={base}", "data.tokenizer.mask=token"]
    train(compose_config("train", chats.overrides(folder, "run", *hub, "trainer.max_steps=2", "data.length=128")))
    return folder / "run"


def answer(model: Any, prompt: list[int], steps: int = 6) -> str:
    return model.generate([prompt], length=len(prompt) + 8, steps=steps, sampler="confidence_entropy")[0]


def test_a_bpe_checkpoint_needs_no_corpus(root: Path) -> None:
    bpe = ("data.tokenizer.kind=bpe", "data.tokenizer.vocab_size=280", "trainer.max_steps=2")
    runs.run(root, "bpe", *bpe)
    checkpoint = root / "bpe/checkpoints/last.ckpt"
    before = sm_diffusion.load(checkpoint)
    shutil.rmtree(root / "corpus")
    shutil.rmtree(root / "cache")
    model = sm_diffusion.load(checkpoint)
    assert model.chat is None
    assert model.tokenizer.fingerprint() == before.tokenizer.fingerprint()
    assert model.tokenizer.encode_batch(["the cat"]) == before.tokenizer.encode_batch(["the cat"])
    assert model.generate(["the "], steps=4) == before.generate(["the "], steps=4)


@pytest.mark.slow
def test_a_chat_checkpoint_with_a_template(template_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hidden = template_run.parent / "chats.hidden"
    (template_run.parent / "chats.jsonl").rename(hidden)
    config = json.dumps(sm_diffusion.load(template_run / "checkpoints/last.ckpt").run.data.tokenizer.path)
    assert "template-base" in config
    model = sm_diffusion.load(template_run / "checkpoints/last.ckpt")
    hidden.rename(template_run.parent / "chats.jsonl")
    assert isinstance(model.predictor, SoftMaskPredictor)
    assert model.length == 128
    assert model.chat is not None
    prompt = model.chat.prompt(QUESTION)
    trained = ChatTemplate(tiny_template_tokenizer(), name="x")
    sample = trained.sample([*QUESTION, {"role": "assistant", "content": "yes"}])
    assert sample is not None
    assert prompt == sample.ids[: sample.prompt_length], "the prompt of training"
    assert TURN in model.chat.stop_ids
    assert model.tokenizer.mask_id == MASK
    text = answer(model, prompt)
    assert text.startswith("<|im_start|>user\nadd 3<|im_end|>\n<|im_start|>assistant\n")

    # The adapter folder and the merged model say the same, and carry tokenizer and length.
    adapter = sm_diffusion.load(template_run / "adapter")
    assert answer(adapter, prompt) == text
    merged = template_run.parent / "full"
    assert cli.main(["convert", "merge", str(template_run / "adapter"), str(merged), "--dtype", "float32"]) == 0
    capsys.readouterr()
    full = sm_diffusion.load(merged)
    assert isinstance(full.predictor, SoftMaskPredictor)
    assert (full.length, adapter.length) == (128, 128)
    assert answer(full, prompt) == text
    assert full.chat is not None
    assert full.chat.prompt(QUESTION) == prompt


@pytest.mark.slow
def test_a_chat_checkpoint_with_plain_lines(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "plain"
    folder.mkdir()
    train(compose_config("train", chats.overrides(folder, "run", "trainer.max_steps=1")))
    (folder / "chats.jsonl").unlink()
    trained = RoleLines(ByteTokenizer()).sample([*QUESTION, {"role": "assistant", "content": "yes"}])
    assert trained is not None
    for place in ("checkpoints/last.ckpt", "adapter"):
        model = sm_diffusion.load(folder / "run" / place)
        assert model.chat is not None
        assert model.chat.prompt(QUESTION) == trained.ids[: trained.prompt_length]
        assert model.chat.stop_ids == {256}
        assert answer(model, model.chat.prompt(QUESTION)).startswith("user: add 3\nassistant: ")
    assert cli.main(["convert", "merge", str(folder / "run/adapter"), str(folder / "full"), "--dtype", "float32"]) == 0
    capsys.readouterr()
    assert sm_diffusion.load(folder / "full").length == 96


def test_a_published_folder(root: Path) -> None:
    model = sm_diffusion.load(write_model(root / "published"))
    assert isinstance(model.predictor, HardMaskPredictor)
    assert model.length == 128, "of its config.json"
    assert next(model.predictor.parameters()).dtype == torch.float32, "as its files are"
    assert model.chat is not None
    halved = sm_diffusion.load(root / "published", overrides=["model=dream_7b", "model.dtype=bfloat16"])
    assert next(halved.predictor.parameters()).dtype == torch.bfloat16
    silent = sm_diffusion.load(write_model(root / "silent", template=None))
    assert silent.chat is None, "a tokenizer without a chat template"


def _broken(root: Path, how: str) -> Path | str:
    if how == "bare":
        folder = root / "bare"
        folder.mkdir(exist_ok=True)
        return folder
    if how == "no tokenizer":
        folder = chats.write_base(root / "speechless")
        return folder
    if how == "shards":
        folder = root / "shards.ckpt"
        folder.mkdir(exist_ok=True)
        (folder / "tree.pt").write_text("x")
        return folder
    if how == "adapter":
        folder = root / "damaged-adapter"
        folder.mkdir(exist_ok=True)
        (folder / "adapter_config.json").write_text('{"base_model_')
        return folder
    if how == "card":
        folder = write_model(root / "card")
        (folder / "smd_model.json").write_text("{")
        return folder
    return {"nothing": "runs/nowhere/last.ckpt", "hub": "someone/model", "gone": "someone/model@abc"}[how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("bare", r"bare: neither a model folder \(config.json\) nor an adapter folder"),
        ("no tokenizer", r"speechless: no tokenizer beside the weights \(tokenizer.json"),
        ("shards", r"shards.ckpt: a checkpoint in shards"),
        ("card", r"smd_model.json: not JSON .*; write it again with smd convert"),
        ("adapter", r"damaged-adapter/adapter_config.json: not JSON .*; copy the adapter folder again"),
        ("nothing", r"runs/nowhere/last.ckpt: no such file or folder; give a checkpoint"),
        ("hub", r"someone/model: no such file or folder; .*owner/name@commit"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(root: Path, how: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        sm_diffusion.load(_broken(root, how))
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_random_base_is_no_file(root: Path, template_run: Path) -> None:
    copy = root / "random-adapter"
    shutil.copytree(template_run / "adapter", copy)
    card = json.loads((copy / "smd_adapter.json").read_text())
    (copy / "smd_adapter.json").write_text(json.dumps(card | {"base": "random qwen2_tiny (init_seed=0)"}))
    with pytest.raises(UserError, match="which no file holds: load the run's checkpoint"):
        sm_diffusion.load(copy)
    moved = sm_diffusion.load(
        copy, overrides=["model=dream_7b", "model.dtype=float32", f"model.path={root / 'template-base'}"]
    )
    assert moved.length == 128
