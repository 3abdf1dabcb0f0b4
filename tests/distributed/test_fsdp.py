"""FSDP2 and DDP on two gloo processes against one process: losses, weights, averages, data order, every resume."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sm_diffusion.denoisers.convert import Weights, read_weights
from sm_diffusion.training import ckpt_store
from tests.helpers.ranks import Jobs, recorded, run_on_two_ranks
from tests.helpers.runs import run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

STEPS = ["trainer.max_steps=5", "trainer.log_every_steps=1", "callbacks.checkpoint.keep_every=true"]
FSDP = ["strategy=fsdp_cpu", "trainer.devices=2"]
DDP = ["strategy=ddp_cpu", "trainer.devices=2"]


def step_3(root: Path, name: str) -> str:
    return f"ckpt_path={root / name / 'checkpoints/step-3.ckpt'}"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs: whole ones in one process and in two, and each strategy's step 3 continued under the others."""
    root = tmp_path_factory.mktemp("scale")
    for name, extra in (("one-mdlm", ["variant=mdlm"]), ("one-soft", [])):
        alone(root, name, *extra)
    jobs: Jobs = [
        ("fsdp-mdlm", ["variant=mdlm", "model.activation_checkpointing=true", *FSDP]),
        ("fsdp-soft", FSDP),
        ("shard-soft", [*FSDP, "callbacks.checkpoint.layout=sharded"]),
        ("accumulate-soft", [*FSDP, "data.micro_batch_sequences=2", "strategy.reshard_after_forward=false"]),
        ("ddp-soft", DDP),
        ("one-to-fsdp", [*FSDP, step_3(root, "one-soft")]),
        ("one-to-ddp", [*DDP, step_3(root, "one-soft")]),
        ("ddp-to-fsdp", [*FSDP, step_3(root, "ddp-soft")]),
        ("fsdp-to-ddp", [*DDP, step_3(root, "fsdp-soft")]),
        ("shard-to-fsdp", [*FSDP, step_3(root, "shard-soft")]),
        ("shard-to-ddp", [*DDP, step_3(root, "shard-soft")]),
        ("fsdp-from-plain", [*FSDP, f"init_from={root}/one-mdlm/checkpoints/last.ckpt", "trainer.max_steps=1"]),
        ("fsdp-bf16", [*FSDP, "trainer.precision=bf16-mixed", "callbacks.ema.scope=all"]),
    ]
    run_on_two_ranks(root, [(name, [*STEPS, *extra]) for name, extra in jobs])
    for name in ("ddp", "fsdp", "shard"):
        alone(root, f"{name}-to-one", step_3(root, f"{name}-soft"))
    return root


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


WHOLE = [("fsdp-mdlm", "one-mdlm"), ("fsdp-soft", "one-soft"), ("shard-soft", "one-soft"),
         ("accumulate-soft", "one-soft"), ("ddp-soft", "one-soft")]
RESUMED = ["one-to-fsdp", "one-to-ddp", "ddp-to-fsdp", "fsdp-to-ddp", "shard-to-fsdp", "shard-to-ddp", "ddp-to-one",
           "fsdp-to-one", "shard-to-one"]


@pytest.mark.parametrize(("two", "one"), [*WHOLE, *((name, "one-soft") for name in RESUMED)])
def test_equals_one_process(root: Path, two: str, one: str) -> None:
    expected = losses(root, one)
    assert list(expected) == [1, 2, 3, 4, 5]
    if two in RESUMED:
        expected = {step: expected[step] for step in (4, 5)}
    assert losses(root, two) == pytest.approx(expected, rel=1e-5)
    for kind in ("raw", "ema"):
        a, b = weights(root, one, kind), weights(root, two, kind)
        assert a.denoiser.keys() == b.denoiser.keys()
        assert a.soft_mask.keys() == b.soft_mask.keys()
        for name, value in (a.denoiser | a.soft_mask).items():
            other = (b.denoiser | b.soft_mask)[name]
            assert (value - other).abs().max() <= 2e-6 * max(1.0, float(value.abs().max())), (kind, name)


@pytest.mark.parametrize("name", [*(name for name, _ in WHOLE), *RESUMED])
def test_the_order_of_the_data_is_that_of_one_process(root: Path, name: str) -> None:
    expected = sequences(root, "one-soft")
    if name in RESUMED:
        expected = [row for row in expected if row[0] >= 3]
    assert sequences(root, name) == expected


@pytest.mark.parametrize(("two", "one"), WHOLE[:3])
def test_validation_and_results_equal_one_process(root: Path, two: str, one: str) -> None:
    a, b = (json.loads((root / name / "results.json").read_text()) for name in (one, two))
    assert b["metrics"] == pytest.approx(a["metrics"], rel=1e-5)
    assert (b["omegas"] or {}) == pytest.approx(a["omegas"] or {}, rel=1e-5)
    assert b["checkpoint_sha256"]


def test_sharded_checkpoints_are_verified_and_kept_like_files(root: Path) -> None:
    folder = root / "shard-soft/checkpoints"
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in (root / "one-soft/checkpoints").iterdir())
    for path in folder.iterdir():
        assert path.is_dir()
        ckpt_store.verify(path)
        assert len(list(path.glob("*.distcp"))) == 2, "every rank writes its part"


def test_starting_from_a_plain_model_and_mixed_precision(root: Path) -> None:
    started = weights(root, "fsdp-from-plain", "raw")
    plain = weights(root, "one-mdlm", "raw")
    assert started.soft_mask
    moved = [(started.denoiser[name] - value).abs().max() for name, value in plain.denoiser.items()]
    assert 0 < max(moved) < 5e-3, "one step away from where it started"
    assert losses(root, "fsdp-bf16") == pytest.approx(losses(root, "one-soft"), rel=2e-2)
    assert all(value.dtype == torch.float32 for value in weights(root, "fsdp-bf16", "ema").denoiser.values())
