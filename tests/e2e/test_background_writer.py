"""Runs whose checkpoints are saved by a thread."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sm_diffusion.training.checkpoints import store as ckpt_store
from sm_diffusion.types import UserError
from tests.helpers.runs import run


def test_a_run_that_saves_in_the_background_ends_with_the_same_checkpoints(tmp_path: Path) -> None:
    settings = ["trainer.max_steps=4", "trainer.val_every_steps=2", "callbacks.checkpoint.every_steps=1"]
    run(tmp_path, "plain", *settings)
    results = run(tmp_path, "async", *settings, "callbacks.checkpoint.async_save=true")
    assert results["checkpoint_sha256"]
    names = sorted(path.name for path in (tmp_path / "plain/checkpoints").iterdir())
    assert sorted(path.name for path in (tmp_path / "async/checkpoints").iterdir()) == names
    for name in names:
        a, b = (ckpt_store.read(tmp_path / run_name / "checkpoints" / name) for run_name in ("plain", "async"))
        assert a["global_step"] == b["global_step"]
        assert all(torch.equal(value, b["state_dict"][key]) for key, value in a["state_dict"].items())
        moments = zip(*(tree["optimizer_states"][0]["state"].values() for tree in (a, b)), strict=True)
        assert all(torch.equal(x["exp_avg"], y["exp_avg"]) for x, y in moments)


def test_a_disk_that_fills_in_the_background_ends_the_run_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["trainer.val_every_steps=0", "callbacks.checkpoint.every_steps=2"]
    settings.append("callbacks.checkpoint.async_save=true")
    run(tmp_path, "full", *settings, "trainer.max_steps=2")
    real = Path.open

    def refuse(self: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if self.name.endswith(ckpt_store.PARTIAL):
            raise OSError(28, "No space left on device")
        return real(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"could not be written \(No space left on device\); the checkpoint before it"):
        run(tmp_path, "full", *settings, "trainer.max_steps=8", "ckpt_path=auto")
    ckpt_store.verify(tmp_path / "full/checkpoints/last.ckpt")
    assert ckpt_store.read(tmp_path / "full/checkpoints/last.ckpt")["global_step"] == 2
