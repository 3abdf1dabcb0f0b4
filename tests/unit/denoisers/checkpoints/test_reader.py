"""Checkpoints can run no code, and damaged ones end with one clear line."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from sm_diffusion.denoisers.checkpoints.reader import Archive, load_tensors
from sm_diffusion.denoisers.checkpoints.weights import load_into, read_weights
from sm_diffusion.types import UserError
from tests.helpers.golden import GOLDEN


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.path}",)


class Stateful:
    def __init__(self, path: Path) -> None:
        self.__dict__["payload"] = Malicious(path)


def test_agrees_with_torch_load(tmp_path: Path) -> None:
    base = torch.arange(24, dtype=torch.float32).view(4, 6)
    tree = {
        "whole": base,
        "view": base[1:3, ::2],
        "transposed": base.t(),
        "half": torch.randn(3).bfloat16(),
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(3),
        "parameter": nn.Parameter(torch.ones(2)),
        "plain": [1, 2.5, "x", (True, None)],
    }
    torch.save(tree, tmp_path / "a.ckpt")
    ours = load_tensors(Archive(tmp_path / "a.ckpt").tree())
    reference = torch.load(tmp_path / "a.ckpt", weights_only=True)
    for name, value in reference.items():
        if isinstance(value, torch.Tensor):
            assert ours[name].dtype == value.dtype
            assert torch.equal(ours[name], value.detach()), name
        else:
            assert ours[name] == value


@pytest.mark.parametrize("wrap", [Malicious, Stateful])
def test_a_malicious_checkpoint_runs_nothing(tmp_path: Path, wrap: type) -> None:
    trap = tmp_path / "executed"
    torch.save({"state_dict": {"backbone.x": torch.ones(2)}, "hyper": wrap(trap)}, tmp_path / "evil.ckpt")
    tree = Archive(tmp_path / "evil.ckpt").tree()
    assert torch.equal(load_tensors(tree["state_dict"])["backbone.x"], torch.ones(2))
    assert not trap.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "evil.ckpt", weights_only=True)


def test_truncated_at_any_length(tmp_path: Path) -> None:
    whole = (GOLDEN / "ckpt_mdlm_plain.ckpt").read_bytes()
    for share in (0.0, 0.3, 0.9, 0.999):
        path = tmp_path / "cut.ckpt"
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(UserError, match=r"cut\.ckpt.*truncated"):
            read_weights(path, weights="raw")


def test_missing_foreign_and_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint"):
        read_weights(tmp_path / "nothing.ckpt", weights="raw")
    torch.save({"a": 1}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="no state_dict"):
        read_weights(tmp_path / "other.ckpt", weights="raw")
    torch.save({"state_dict": {"layer.weight": torch.ones(1)}}, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match=r"neither .* layer\.weight"):
        read_weights(tmp_path / "foreign.ckpt", weights="raw")
    torch.save({"state_dict": {"backbone.x": torch.ones(1)}}, tmp_path / "raw.ckpt")
    with pytest.raises(UserError, match="no EMA weights"):
        read_weights(tmp_path / "raw.ckpt", weights="ema")
    with pytest.raises(UserError, match="weights=best"):
        read_weights(tmp_path / "raw.ckpt", weights="best")


def test_another_shape_lists_what_differs() -> None:
    with pytest.raises(UserError, match=r"weight is \(3, 3\) there, \(2, 2\) here; .*|bias is missing; weight is"):
        load_into(nn.Linear(2, 2), {"weight": torch.ones(3, 3)}, source=Path("x.ckpt"), what="model")
