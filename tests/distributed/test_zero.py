"""DeepSpeed's ZeRO on gloo processes against one process, resumes between it and every other strategy; four ranks."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

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

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="pip install 'sm-diffusion[scale]'"),
]

STAGES = ("zero1", "zero2", "zero3")
WHOLE = [(f"{stage}-{variant}", variant) for stage in STAGES for variant in ("mdlm", "soft")]
OTHERS = ("one", "ddp", "fsdp")
# Every ordered pair with a ZeRO stage in it; those without are in test_fsdp.py.
PAIRS = [(a, b) for a in ("zero2", "zero3") for b in OTHERS] + [(b, a) for a in ("zero2", "zero3") for b in OTHERS]
PAIRS += [("zero2", "zero3"), ("zero3", "zero2")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("zero")
    alone(root, "one-mdlm", "variant=mdlm")
    alone(root, "one-soft")
    jobs: Jobs = [("ddp-soft", strategy("ddp")), ("fsdp-soft", strategy("fsdp"))]
    jobs += [(f"{stage}-mdlm", ["variant=mdlm", *strategy(stage)]) for stage in STAGES]
    jobs += [(f"{stage}-soft", strategy(stage)) for stage in STAGES]
    for stage in ("zero2", "zero3"):
        jobs.append((f"accumulate-{stage}", [*strategy(stage), "data.micro_batch_sequences=2"]))
        jobs.append((f"checkpointed-{stage}", [*strategy(stage), "model.activation_checkpointing=true"]))
        jobs.append((f"bf16-{stage}", [*strategy(stage), "trainer.precision=bf16-mixed", "callbacks.ema.scope=all"]))
    jobs += [(f"{a}-to-{b}", [*strategy(b), step_3(root, f"{a}-soft")]) for a, b in PAIRS if b != "one"]
    run_on_ranks(root, [(name, [*STEPS, *extra]) for name, extra in jobs])
    for a, b in PAIRS:
        if b == "one":
            alone(root, f"{a}-to-one", step_3(root, f"{a}-soft"))
    return root


@pytest.mark.parametrize(("name", "variant"), WHOLE)
def test_equals_one_process(root: Path, name: str, variant: str) -> None:
    assert_equal(root, name, f"one-{variant}")
    assert_same_sequences(root, name, "one-soft")
    a, b = (json.loads((root / run / "results.json").read_text()) for run in (f"one-{variant}", name))
    assert b["metrics"] == pytest.approx(a["metrics"], rel=1e-5)
    assert (b["omegas"] or {}) == pytest.approx(a["omegas"] or {}, rel=1e-5)


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
@pytest.mark.parametrize("how", ["accumulate", "checkpointed"])
def test_micro_batches_and_recomputation_change_nothing(root: Path, how: str, stage: str) -> None:
    assert_equal(root, f"{how}-{stage}", "one-soft")


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_mixed_precision_keeps_float32_weights(root: Path, stage: str) -> None:
    assert losses(root, f"bf16-{stage}") == pytest.approx(losses(root, "one-soft"), rel=2e-2)
    assert losses(root, f"bf16-{stage}") != losses(root, f"{stage}-soft")
    assert all(value.dtype == torch.float32 for value in weights(root, f"bf16-{stage}", "ema").denoiser.values())


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_what_one_strategy_saved_goes_on_under_another(root: Path, a: str, b: str) -> None:
    assert_equal(root, f"{a}-to-{b}", "one-soft", steps=(4, 5))
    assert_same_sequences(root, f"{a}-to-{b}", "one-soft", after=3)


FOUR = [(f"{name}-{variant}", variant) for name in ("ddp", "fsdp", "zero2", "zero3") for variant in ("mdlm", "soft")]


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("four")
    alone(root, "one-mdlm", "variant=mdlm")
    alone(root, "one-soft")
    jobs: Jobs = []
    for name, variant in FOUR:
        jobs.append((name, [f"variant={'mdlm' if variant == 'mdlm' else 'soft_masked'}",
                            *strategy(name.partition("-")[0], world=4)]))
    jobs.append(("one-to-fsdp", [*strategy("fsdp", world=4), step_3(root, "one-soft")]))
    run_on_ranks(root, [(name, [*STEPS, *extra]) for name, extra in jobs], world=4)
    run_on_ranks(root, [("four-to-two", [*STEPS, *strategy("zero3"), step_3(root, "fsdp-soft")])])
    return root


@pytest.mark.parametrize(("name", "variant"), FOUR)
def test_four_processes_equal_one(four: Path, name: str, variant: str) -> None:
    assert_equal(four, name, f"one-{variant}")
    assert_same_sequences(four, name, f"one-{variant}")


@pytest.mark.parametrize("name", ["one-to-fsdp", "four-to-two"])
def test_a_run_goes_on_with_another_number_of_processes(four: Path, name: str) -> None:
    assert_equal(four, name, "one-soft", steps=(4, 5))
    assert_same_sequences(four, name, "one-soft", after=3)
