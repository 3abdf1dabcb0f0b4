"""FSDP2 and DDP on two gloo processes against one process: losses, weights, averages, data order, every resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sm_diffusion.training.checkpoints import store as ckpt_store
from tests.helpers.ranks import Jobs, run_on_ranks
from tests.helpers.strategies import (
    STEPS,
    alone,
    assert_equal,
    assert_same_sequences,
    losses,
    step_3,
    strategy,
    weights,
)

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

FSDP, DDP = strategy("fsdp"), strategy("ddp")


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
        ("accumulate-ddp", [*DDP, "data.micro_batch_sequences=1"]),
        ("accumulate-four", [*FSDP, "data.micro_batch_sequences=1"]),
        ("one-to-fsdp", [*FSDP, step_3(root, "one-soft")]),
        ("one-to-ddp", [*DDP, step_3(root, "one-soft")]),
        ("ddp-to-fsdp", [*FSDP, step_3(root, "ddp-soft")]),
        ("fsdp-to-ddp", [*DDP, step_3(root, "fsdp-soft")]),
        ("shard-to-fsdp", [*FSDP, step_3(root, "shard-soft")]),
        ("shard-to-ddp", [*DDP, step_3(root, "shard-soft")]),
        ("fsdp-from-plain", [*FSDP, f"init_from={root}/one-mdlm/checkpoints/last.ckpt", "trainer.max_steps=1"]),
        ("fsdp-bf16", [*FSDP, "trainer.precision=bf16-mixed", "callbacks.ema.scope=all"]),
    ]
    run_on_ranks(root, [(name, [*STEPS, *extra]) for name, extra in jobs])
    for name in ("ddp", "fsdp", "shard"):
        alone(root, f"{name}-to-one", step_3(root, f"{name}-soft"))
    return root


WHOLE = [("fsdp-mdlm", "one-mdlm"), ("fsdp-soft", "one-soft"), ("shard-soft", "one-soft"),
         ("accumulate-soft", "one-soft"), ("ddp-soft", "one-soft"), ("accumulate-ddp", "one-soft"),
         ("accumulate-four", "one-soft")]
RESUMED = ["one-to-fsdp", "one-to-ddp", "ddp-to-fsdp", "fsdp-to-ddp", "shard-to-fsdp", "shard-to-ddp", "ddp-to-one",
           "fsdp-to-one", "shard-to-one"]


@pytest.mark.parametrize(("two", "one"), [*WHOLE, *((name, "one-soft") for name in RESUMED)])
def test_equals_one_process(root: Path, two: str, one: str) -> None:
    assert_equal(root, two, one, steps=(4, 5) if two in RESUMED else (1, 2, 3, 4, 5))


@pytest.mark.parametrize("name", [*(name for name, _ in WHOLE), *RESUMED])
def test_the_order_of_the_data_is_that_of_one_process(root: Path, name: str) -> None:
    assert_same_sequences(root, name, "one-soft", after=3 if name in RESUMED else 0)


@pytest.mark.parametrize(("two", "one"), WHOLE[:3])
def test_validation_and_results_equal_one_process(root: Path, two: str, one: str) -> None:
    a, b = (json.loads((root / name / "results.json").read_text()) for name in (one, two))
    assert b["metrics"] == pytest.approx(a["metrics"], rel=1e-5)
    assert (b["omegas"] or {}) == pytest.approx(a["omegas"] or {}, rel=1e-5)
    assert b["checkpoint_sha256"]


def test_ddp_sends_gradients_once_a_step_whatever_the_number_of_micro_batches(root: Path) -> None:
    """FSDP2's are counted in tests/unit/planning/test_devices.py: gloo's scatters are not in the flight recorder."""
    counts = [
        json.loads((root / f"{name}.collectives.0").read_text()).count("all_reduce")
        for name in ("ddp-soft", "accumulate-ddp")
    ]
    assert counts[0] == counts[1] >= 5, counts


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
