"""Runs under one strategy compared with runs under another: losses, weights, averages, the order of the data."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from sm_diffusion.denoisers.checkpoints.weights import Weights, read_weights
from sm_diffusion.training.checkpoints import store as ckpt_store
from tests.helpers.ranks import recorded
from tests.helpers.runs import run

STEPS = ["trainer.max_steps=5", "trainer.log_every_steps=1", "callbacks.checkpoint.keep_every=true"]


def strategy(name: str, *, world: int = 2) -> list[str]:
    """Overrides of a strategy on the CPU: ddp, fsdp, or zero1, zero2, zero3."""
    devices = f"trainer.devices={world}"
    if name.startswith("zero"):
        return ["strategy=deepspeed_cpu", f"strategy.zero_stage={name[-1]}", devices]
    return [f"strategy={name}_cpu", devices]


def step_3(root: Path, name: str) -> str:
    return f"ckpt_path={root / name / 'checkpoints/step-3.ckpt'}"


def alone(root: Path, name: str, *extra: str) -> None:
    rows: list[list[Any]] = []
    with recorded(rows):
        run(root, name, *STEPS, *extra)
    (root / f"{name}.0.json").write_text(json.dumps(rows))


def weights(root: Path, name: str, kind: str) -> Weights:
    path = root / name / "checkpoints/last.ckpt"
    if path.is_dir():
        ckpt_store.consolidate(path, root / f"{name}.ckpt")
        path = root / f"{name}.ckpt"
    return read_weights(path, weights=kind)


def losses(root: Path, name: str) -> dict[int, float]:
    found = {}
    for file in sorted((root / name / "metrics").rglob("metrics.csv")):
        with file.open() as lines:
            found |= {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(lines) if row["train/loss"]}
    return found


def sequences(root: Path, name: str) -> list[list[Any]]:
    return sorted(row for file in root.glob(f"{name}.?.json") for row in json.loads(file.read_text()))


def assert_equal(root: Path, two: str, one: str, *, steps: tuple[int, ...] = (1, 2, 3, 4, 5)) -> None:
    """The loss curve of these steps, the weights and their average are those of the other run."""
    expected = losses(root, one)
    assert list(expected) == [1, 2, 3, 4, 5]
    assert losses(root, two) == pytest.approx({step: expected[step] for step in steps}, rel=1e-5)
    for kind in ("raw", "ema"):
        a, b = weights(root, one, kind), weights(root, two, kind)
        assert a.denoiser.keys() == b.denoiser.keys()
        assert a.soft_mask.keys() == b.soft_mask.keys()
        for name, value in (a.denoiser | a.soft_mask).items():
            other = (b.denoiser | b.soft_mask)[name]
            assert (value - other).abs().max() <= 2e-6 * max(1.0, float(value.abs().max())), (kind, name)


def assert_same_sequences(root: Path, two: str, one: str, *, after: int = 0) -> None:
    """Both runs saw the same rows at the same steps, bit for bit, from step `after` on."""
    assert sequences(root, two) == [row for row in sequences(root, one) if row[0] >= after]
