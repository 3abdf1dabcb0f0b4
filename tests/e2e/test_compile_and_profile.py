"""trainer.compile and trainer.profile: the same losses, and a trace that says what it should."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from sm_diffusion.app.validate_strategy import COMPILERS
from sm_diffusion.training.trainer_settings import TRACED_STEPS
from tests.helpers.runs import run

SETTINGS = ("model.num_blocks=2", "trainer.log_every_steps=1", "trainer.val_every_steps=0")


def losses(folder: Path) -> list[float]:
    with next((folder / "metrics").rglob("metrics.csv")).open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_give_the_same_losses(tmp_path: Path, backend: str) -> None:
    """Soft-masked: blocks run with and without gradient, and with validation's batch size."""
    if backend == "inductor" and not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C++ compiler")
    plain = run(tmp_path, "plain", *SETTINGS)
    compiled = run(tmp_path, "compiled", *SETTINGS, "trainer.compile=true", f"trainer.compile_backend={backend}")
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
    assert compiled["metrics"]["val/nll"] == pytest.approx(plain["metrics"]["val/nll"], rel=1e-5)
    assert compiled["metrics"]["val/nll_without_feedback"] == pytest.approx(
        plain["metrics"]["val/nll_without_feedback"], rel=1e-5
    )
    # Names of weights are as ever: a plain run goes on from a compiled one.
    (tmp_path / "compiled" / "results.json").unlink()
    assert run(tmp_path, "compiled", *SETTINGS, "trainer.max_steps=8", "ckpt_path=last")["compute"]["steps"] == 8


def test_a_profile_holds_the_traced_steps(tmp_path: Path) -> None:
    run(tmp_path, "plain", *SETTINGS)
    run(tmp_path, "traced", *SETTINGS, "trainer.profile=true", "data.micro_batch_sequences=4")
    trace = json.loads((tmp_path / "traced/profile/trace-rank0.json").read_text())
    steps = {event["name"] for event in trace["traceEvents"] if event["name"].startswith("ProfilerStep#")}
    assert len(steps) == TRACED_STEPS * 2  # two micro-batches an optimizer step
    summary = (tmp_path / "traced/profile/summary-rank0.txt").read_text()
    assert "aten::mm" in summary
    assert "Optimizer.step#AdamW.step" in summary
    assert sorted(path.name for path in (tmp_path / "traced/profile").iterdir()) == [
        "summary-rank0.txt",
        "trace-rank0.json",
    ]
    assert losses(tmp_path / "traced") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)
