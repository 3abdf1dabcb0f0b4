"""Saves in a thread: their order, their errors, and that they hold what training had when they were asked for."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from sm_diffusion.training.checkpoints import store as ckpt_store
from sm_diffusion.training.checkpoints.gather import snapshot
from sm_diffusion.training.checkpoints.writer import Writer
from sm_diffusion.training.strategies.saving import SafeCheckpointIO
from sm_diffusion.types import UserError


def test_jobs_run_in_order_and_at_most_one_save_waits() -> None:
    writer, go, done = Writer(background=True), threading.Event(), []

    def slow() -> None:
        go.wait(60)
        done.append("first")

    writer.save(slow)
    writer.after(lambda: done.append("removal"))
    assert done == [], "the caller goes on meanwhile"
    go.set()
    writer.save(lambda: done.append("second"))
    assert done[:2] == ["first", "removal"], "a second save waits for the first"
    writer.wait()
    assert done == ["first", "removal", "second"]


def test_a_failed_save_is_raised_by_the_next_call_and_nothing_is_removed_for_it() -> None:
    writer, go, removed = Writer(background=True), threading.Event(), []

    def fail() -> None:
        go.wait(60)
        raise UserError("disk full")

    writer.save(fail)
    writer.after(lambda: removed.append("older checkpoint"))
    go.set()
    with pytest.raises(UserError, match="disk full"):
        writer.save(lambda: removed.append("never"))
    assert removed == []
    writer.wait()  # said once
    with pytest.raises(UserError, match="at once"):
        Writer(background=False).save(lambda: (_ for _ in ()).throw(UserError("at once")))


def assert_set(gate: threading.Event) -> None:
    assert gate.wait(60)


def test_a_snapshot_is_what_training_had(tmp_path: Path) -> None:
    weight = torch.arange(4.0)
    tree: dict[str, Any] = {"state_dict": {"w": weight}, "list": [weight, 3], "pair": (weight, "x")}
    writer = Writer(background=True)
    gate = threading.Event()
    writer.save(lambda: assert_set(gate))
    copied = snapshot(tree)
    gate.set()
    SafeCheckpointIO(writer).save_checkpoint(tree, tmp_path / "last.ckpt")
    weight.zero_()
    writer.wait()
    assert torch.equal(copied["pair"][0], torch.arange(4.0))
    found = ckpt_store.read(tmp_path / "last.ckpt")
    assert torch.equal(found["state_dict"]["w"], torch.arange(4.0))
    assert found["list"][1] == 3
    assert found["pair"][1] == "x"
