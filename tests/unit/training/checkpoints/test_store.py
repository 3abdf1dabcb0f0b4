"""The checkpoint store: a save that ends anywhere leaves one usable checkpoint, and shards read as full tensors."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.api import CheckpointException

from sm_diffusion.cli import main as cli
from sm_diffusion.training.checkpoints import store as ckpt_store
from sm_diffusion.types import UserError


class Killed(BaseException):
    """Stands for the end of the process: nothing after it runs."""


def tree(value: float) -> dict[str, Any]:
    return {
        "state_dict": {"predictor.weight": torch.full((4, 3), value), "predictor.bias": torch.arange(3) + value},
        "optimizer_states": [{"state": {0: {"step": torch.tensor(value), "exp_avg": torch.ones(4, 3)}}, "lr": 1e-3}],
        "loops": {"position": int(value)},
        "betas": (0.9, 0.999),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def write(value: float, path: Path, *, folder: bool) -> None:
    if folder:
        ckpt_store.write_folder(tree(value), path, rank=0)
    else:
        ckpt_store.write_file(tree(value), path)


def kill_at(step: int, patch: pytest.MonkeyPatch) -> list[int]:
    """Raise Killed before file operation `step` (renames, deletions, writes, syncs); returns the counter."""
    count = [0]

    def counted(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            count[0] += 1
            if count[0] == step:
                raise Killed
            return real(*arguments, **options)

        return call

    patch.setattr(os, "replace", counted(os.replace))
    patch.setattr(os, "fsync", counted(os.fsync))
    patch.setattr(shutil, "rmtree", counted(shutil.rmtree))
    patch.setattr(Path, "unlink", counted(Path.unlink))
    patch.setattr(ckpt_store.torch, "save", counted(ckpt_store.torch.save))
    return count


@pytest.mark.parametrize("new_folder", [False, True])
@pytest.mark.parametrize("old_folder", [False, True])
def test_a_save_killed_at_any_operation_leaves_a_whole_checkpoint(
    tmp_path: Path, old_folder: bool, new_folder: bool
) -> None:
    step, seen = 0, set()
    while True:
        step += 1
        folder = tmp_path / str(step)
        path = folder / "last.ckpt"
        write(1.0, path, folder=old_folder)
        with pytest.MonkeyPatch.context() as patch:
            count = kill_at(step, patch)
            with suppress(Killed, CheckpointException):  # torch wraps what is raised while it writes shards
                write(2.0, path, folder=new_folder)
        if count[0] < step:
            break  # no operation left to be killed at
        assert ckpt_store.exists(path)
        ckpt_store.recover(folder)
        ckpt_store.verify(path)
        found = ckpt_store.read(path)
        assert same(found, tree(1.0)) or same(found, tree(2.0))
        seen.add(float(found["state_dict"]["predictor.weight"][0, 0]))
        assert [item.name for item in folder.iterdir()] == ["last.ckpt"]
    assert seen == {1.0, 2.0}
    assert step > 4


def test_removal_killed_half_way_leaves_nothing_to_pick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "best-3.ckpt"
    write(1.0, path, folder=True)
    with monkeypatch.context() as patch:
        kill_at(3, patch)  # after the rename, before the files are gone
        with pytest.raises(Killed):
            ckpt_store.remove(path)
    assert not ckpt_store.exists(path)
    ckpt_store.recover(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_folder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write(1.0, path, folder=True)
    for file in sorted(path.iterdir()):
        good = file.read_bytes()
        file.write_bytes(good[:10] + bytes([good[10] ^ 1]) + good[11:])
        with pytest.raises(UserError, match=r"last\.ckpt: .*; it is damaged"):
            ckpt_store.verify(path)
        file.unlink()
        with pytest.raises(UserError, match=r"last\.ckpt: .*; it is damaged"):
            ckpt_store.verify(path)
        file.write_bytes(good)
    ckpt_store.verify(path)


def test_a_folder_becomes_one_file(tmp_path: Path) -> None:
    write(3.0, tmp_path / "sharded.ckpt", folder=True)
    ckpt_store.consolidate(tmp_path / "sharded.ckpt", tmp_path / "one.ckpt")
    assert same(torch.load(tmp_path / "one.ckpt", weights_only=True), tree(3.0))
    assert ckpt_store.shapes(tmp_path / "sharded.ckpt")["state_dict.predictor.weight"].shape == (4, 3)


def test_consolidate_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(3.0, tmp_path / "sharded.ckpt", folder=True)
    assert cli.main(["convert", "consolidate", str(tmp_path / "sharded.ckpt"), str(tmp_path / "new/one.ckpt")]) == 0
    assert same(torch.load(tmp_path / "new/one.ckpt", weights_only=True), tree(3.0))
    assert cli.main(["convert", "consolidate", str(tmp_path / "new/one.ckpt"), str(tmp_path / "two.ckpt")]) == 2
    assert "one.ckpt: not a checkpoint in shards" in capsys.readouterr().err


def test_unreadable_files_are_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    for content in (b"", b"not a checkpoint", b"PK\x03\x04" + bytes(100)):
        path.write_bytes(content)
        for look in (ckpt_store.verify, ckpt_store.read):
            with pytest.raises(UserError, match=r"last\.ckpt") as caught:
                look(path)
            assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="no such checkpoint"):
        ckpt_store.verify(tmp_path / "none.ckpt")
