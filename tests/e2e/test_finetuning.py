"""Fine-tune -> adapter -> merge -> export -> generate through the programs, on a tiny model shaped like Dream."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sm_diffusion.app.build import build_predictor
from sm_diffusion.app.evaluate import evaluate
from sm_diffusion.app.train import train
from sm_diffusion.cli import main as cli
from sm_diffusion.config.compose import compose_config
from sm_diffusion.denoisers.adapters import peft
from sm_diffusion.denoisers.checkpoints.weights import load_into, read_weights
from sm_diffusion.denoisers.pretrained.loading import open_backbone
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.predictor import Predictor, SoftMaskPredictor
from sm_diffusion.types import UserError
from tests.helpers.chats import BYTE_MASK, BYTE_VOCAB, generated, overrides, write_base, write_chats


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("finetuning")


def run(root: Path, name: str, *extra: str) -> dict[str, Any]:
    return train(compose_config("train", overrides(root, name, *extra)))


@pytest.fixture(scope="module")
def tuned(root: Path) -> dict[str, Any]:
    return run(root, "tuned")




def of_checkpoint(root: Path, name: str) -> Predictor:
    config = compose_config("train", overrides(root, name))
    predictor = build_predictor(config, vocab_size=BYTE_VOCAB, mask_id=BYTE_MASK)
    weights = read_weights(root / name / "checkpoints" / "last.ckpt", weights="raw")
    load_into(predictor.denoiser, weights.denoiser, source=weights.path, what="model")
    assert isinstance(predictor, SoftMaskPredictor)
    load_into(predictor.soft_mask, weights.soft_mask, source=weights.path, what="soft mask")
    return predictor


def test_the_whole_cycle(root: Path, tuned: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "tuned" / "adapter"
    assert {path.name for path in folder.iterdir()} >= {"adapter_model.safetensors", "transparency_config.json"}
    assert cli.main(["convert", "merge", str(folder), str(root / "full"), "--dtype", "float32"]) == 0
    assert "merged into" in capsys.readouterr().out
    backbone = open_backbone(str(root / "full"), dtype=torch.float32)
    soft_mask = peft.read_soft_mask(root / "full")
    assert soft_mask is not None
    merged = SoftMaskPredictor(backbone.denoiser, soft_mask, mask_id=backbone.mask_id, mixing=mixing.linear)
    texts = generated(merged)
    assert all(BYTE_MASK not in text for text in texts)
    assert texts == generated(of_checkpoint(root, "tuned"))
    assert soft_mask.omega_s.item() == pytest.approx(tuned["omegas"]["omega_s"], rel=1e-6)
    # The same adapter from the checkpoint alone.
    checkpoint = root / "tuned" / "checkpoints" / "last.ckpt"
    assert cli.main(["convert", "adapter", str(checkpoint), str(root / "again")]) == 0
    for file in ("adapter_model.safetensors", peft.OMEGA_FILE):
        first, second = load_file(folder / file), load_file(root / "again" / file)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_only_adapters_and_omegas_train_and_are_saved(root: Path, tuned: dict[str, Any]) -> None:
    state = torch.load(root / "tuned" / "checkpoints" / "last.ckpt", weights_only=True)
    names = [name.removeprefix("predictor.") for name in state["state_dict"]]
    others = [name for name in names if "lora_" not in name and not name.startswith("soft_mask.")]
    assert others == ["denoiser.base_fingerprint"]
    assert not state["callbacks"].get("EMACallback"), "no EMA by default"
    base, after = open_backbone(str(root / "base"), dtype=torch.float32), of_checkpoint(root, "tuned")
    trained = dict(after.denoiser.named_parameters())
    for name, parameter in base.denoiser.named_parameters():
        wrapped = [n for n in (name, name.replace("_proj.", "_proj.base_layer.")) if n in trained]
        assert torch.equal(trained[wrapped[0]], parameter), name
    assert tuned["omegas"]["omega_s"] != pytest.approx(0.27, abs=1e-4)


def test_resumed_is_bitwise_the_uninterrupted_run(root: Path, tuned: dict[str, Any]) -> None:
    run(root, "parts", "trainer.max_steps=2", "optim.decay=constant")
    (root / "parts" / "results.json").unlink()
    run(root, "parts", "optim.decay=constant", "ckpt_path=last")
    run(root, "whole", "optim.decay=constant")
    states = [
        torch.load(root / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("parts", "whole")
    ]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_an_average_is_kept_when_asked_for(root: Path) -> None:
    run(root, "average", "callbacks.ema.enabled=true", "trainer.max_steps=1")
    found = read_weights(root / "average" / "checkpoints" / "last.ckpt", weights="ema")
    assert any("lora_" in name for name in found.denoiser)


def test_another_base_is_refused_on_resuming_and_merging(
    root: Path, tuned: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_base(root / "other", seed=1)
    with pytest.raises(UserError, match="trained on other base weights") as caught:
        run(root, "moved", f"init_from={root / 'tuned/checkpoints/last.ckpt'}", f"model.path={other}")
    assert "\n" not in str(caught.value)
    adapter = str(root / "tuned" / "adapter")
    capsys.readouterr()  # the bar of writing the other base
    assert cli.main(["convert", "merge", adapter, str(root / "wrong"), "--base", str(other)]) == 2
    error = capsys.readouterr().err
    assert "was trained on other weights" in error
    assert error.count("\n") == 1


def _broken(root: Path, how: str) -> list[str]:
    """Overrides that hold one mistake."""
    if how == "vocabulary":
        return ["data.tokenizer.kind=char"]
    if how == "no mask":
        folder = write_base(root / "maskless")
        config = json.loads((folder / "config.json").read_text())
        config.pop("mask_token_id", None)
        (folder / "config.json").write_text(json.dumps(config))
        return [f"model.path={folder}"]
    if how == "keys":
        folder = write_base(root / "keyless")
        weights = load_file(folder / "model.safetensors")
        weights.pop("model.norm.weight", None)
        save_file(weights, folder / "model.safetensors")
        return [f"model.path={folder}"]
    if how == "long":
        return ["data.length=20"]
    if how == "json":
        path = root / "bad.jsonl"
        path.write_text('{"messages": [{"role": "user"}]}\n')
        return [f"data.paths=[{path}]"]
    return {
        "hub": ["model.path=nobody/nothing"],
        "folder": ["model.path=/nowhere/model"],
        "peft": ["model=dit_tiny"],
        "kind": ["peft.kind=prefix"],
        "target": ["peft.targets=[qkv]"],
        "dtype": ["model.dtype=float8"],
        "attention": ["model.attention=flash"],
        "times": ["objective.name=mdlm"],
        "4 bit": ["peft.kind=none", "peft.quantize=true"],
    }[how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("vocabulary", r"the tokenizer's mask token is 27, that of .* is 257"),
        ("no mask", r"has no mask token \(model_type qwen2\): set add_mask"),
        ("keys", r"does not fit its config.json: 1 missing \(model.norm.weight\)"),
        ("long", r"no conversation is left for train \(refused: too_long \d+;"),
        ("json", r'bad.jsonl, line 1: messages must be a list of \{"role": text, "content": text\}'),
        ("hub", r"model.path=nobody/nothing: neither a folder nor a pinned hub id; set model.revision"),
        ("folder", r"model.path=/nowhere/model: there is no such folder"),
        ("kind", r"peft.kind=prefix: unknown; choose one of none, lora, dora"),
        ("target", r"peft.targets=\[qkv\]: choose from q_proj"),
        ("dtype", r"model.dtype=float8: unknown"),
        ("attention", r"model.attention=flash: a backbone of transformers runs sdpa"),
        ("times", r"objective.times=first_row: only fine-tuning has one time a batch"),
        ("4 bit", r"peft.quantize=true: a 4-bit base cannot be trained itself"),
    ],
)
def test_bad_input_is_one_line(root: Path, how: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        run(root, f"bad-{how.replace(' ', '-')}", *_broken(root, how))
    assert "\n" not in str(caught.value)


def test_adapters_on_a_dit_are_refused(tmp_path: Path) -> None:
    options = ["model=dit_tiny", "peft=dora_r16", f"output_dir={tmp_path}"]
    with pytest.raises(UserError, match=r"peft.kind=dora: dit_tiny has no adapters; set peft=none"):
        train(compose_config("train", options))


@pytest.mark.parametrize(
    ("package", "option", "message"),
    [
        ("peft", "peft=dora_r16", r"peft.kind=dora: not installed; pip install 'sm-diffusion\[peft\]'"),
        ("bitsandbytes", "peft=qlora_r16", r"peft.quantize=true: bitsandbytes is not installed; pip install"),
    ],
)
def test_a_missing_package_is_told_before_anything_is_loaded(
    root: Path, package: str, option: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = overrides(root, f"without-{package}", option)
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("sm_diffusion.data.chat.settings.ChatSettings.datamodule", None)
    with pytest.raises(UserError, match=message) as caught:
        train(compose_config("train", arguments))
    assert "\n" not in str(caught.value)


def test_a_hub_that_cannot_be_reached(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(UserError, match="could not be had from the Hugging Face hub") as caught:
        run(root, "offline", "model.path=Dream-org/Dream-v0-Instruct-7B")
    assert "\n" not in str(caught.value)


def test_published_behaviour_of_padding_can_be_switched(root: Path) -> None:
    write_chats(root / "more.jsonl", num=20, seed=1)
    off = run(root, "pads-off", "data.pads_are_maskable=false", "trainer.max_steps=1", "peft.kind=lora",
              "variant=mdlm", f"data.validation_paths=[{root / 'more.jsonl'}]")
    assert off["omegas"] is None


def test_its_loss_is_named_as_such_and_does_not_depend_on_the_batch(root: Path, tuned: dict[str, Any]) -> None:
    found = []
    for size in (64, 1, 3):
        words = [f"checkpoint={root / 'tuned'}", "accelerator=cpu", f"output_dir={root / 'e'}"]
        words.append(f"batch_sequences={size}")
        found.append(evaluate(compose_config("eval", words))["metrics"])
    assert set(found[0]) == {"val/finetuning_loss", "val/finetuning_loss_without_feedback"}
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)
