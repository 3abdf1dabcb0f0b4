"""`smd convert` on published checkpoints, on our own, and on the hub that is not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sm_diffusion.denoisers import peft
from sm_diffusion.denoisers.convert import read_weights
from sm_diffusion.tools import cli
from tests.helpers.golden import GOLDEN
from tests.helpers.qwen import tiny_qwen


def convert(*words: object) -> int:
    return cli.main(["convert", *map(str, words)])


@pytest.mark.parametrize("name", ["ckpt_mdlm", "ckpt_mdlm_sm"])
def test_a_published_checkpoint_becomes_ours_and_goes_back(tmp_path: Path, name: str, capsys: Any) -> None:
    published, ours = GOLDEN / f"{name}.ckpt", tmp_path / "ours.ckpt"
    assert convert("import", published, ours) == 0
    for kind in ("raw", "ema"):
        a, b = read_weights(published, weights=kind), read_weights(ours, weights=kind)
        assert a.denoiser.keys() == b.denoiser.keys()
        assert all(torch.equal(a.denoiser[key], b.denoiser[key]) for key in a.denoiser)
        assert all(torch.equal(a.soft_mask[key], b.soft_mask[key]) for key in a.soft_mask)
        out = tmp_path / f"{kind}.safetensors"
        assert convert("export", ours, out, "--weights", kind) == 0
        again = read_weights(out, weights="raw")
        assert all(torch.equal(a.denoiser[key], again.denoiser[key]) for key in a.denoiser)
        assert again.soft_mask.keys() == a.soft_mask.keys()
    capsys.readouterr()
    assert convert("list", ours) == 0
    out_text = capsys.readouterr().out
    assert "EMA        yes" in out_text
    assert ("raw_omega_s" in out_text) == name.endswith("_sm")


def test_listing_folders(tmp_path: Path, capsys: Any) -> None:
    peft.save(peft.attach(tiny_qwen(), peft.DORA, seed=0), tmp_path / "adapter", None)
    assert convert("list", tmp_path / "adapter", "--all") == 0
    out = capsys.readouterr().out
    assert "adapter folder" in out
    assert "omegas     none" in out
    assert "layers.1.self_attn.o_proj.lora_B.weight" in out


def test_bad_input_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def unreachable(*_: Any, **__: Any) -> str:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", unreachable)
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("x")
    checkpoint = GOLDEN / "ckpt_mdlm.ckpt"
    cases = [
        (("list", tmp_path / "nothing.ckpt"), "nothing.ckpt"),
        (("list", tmp_path / "empty"), "is no model folder"),
        (("merge", tmp_path / "empty", tmp_path / "out"), "does not name its base: give --base"),
        (("merge", tmp_path / "empty", tmp_path / "full"), "exists already: give a new place"),
        (("adapter", checkpoint, tmp_path / "out"), "holds no adapter"),
        (("export", checkpoint, tmp_path / "out.bin"), "give a name that ends in .safetensors"),
        (("pull", "someone/model", tmp_path / "out"), "it needs a revision"),
        (("pull", "someone/model", tmp_path / "out", "--revision", "abc"), "could not be had from the Hugging Face"),
        (("push", tmp_path / "full", "me/model"), "log in with `hf auth login`"),
        (("push", tmp_path / "nowhere", "me/model"), "there is no such folder"),
    ]
    for words, message in cases:
        assert convert(*words) == 2, words
        error = capsys.readouterr().err
        assert message in error, (words, error)
        assert error.count("\n") == 1, error
