"""Runs that go on: from their folder alone, with other micro-batches, and sweeps with a bad job in the middle."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sm_diffusion.paths import ROOT
from tests.helpers.runs import overrides, run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def train(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words], cwd=root, capture_output=True, text=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_a_run_goes_on_from_its_folder_alone(root: Path) -> None:
    run(root, "alone", "model.dropout=0.1")
    done = train(root, "ckpt_path=alone", "trainer.max_steps=8", "callbacks.progress_seconds=5", "optim=small",
                 "optim.warmup_steps=2")  # fmt: skip
    assert done.returncode == 0, done.stderr
    stored = yaml.safe_load((root / "alone/config.yaml").read_text())
    assert (stored["model"]["dropout"], stored["trainer"]["max_steps"], stored["optim"]["warmup_steps"]) == (0.1, 8, 2)
    assert json.loads((root / "alone/results.json").read_text())["compute"]["steps"] == 8
    wrong = train(root, "ckpt_path=alone", "trainer.max_stepz=8")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)


def test_a_sweep_with_a_bad_job_in_the_middle(root: Path) -> None:
    words = ["-m", *(word for word in overrides(root, "sweep") if not word.startswith("trainer.max_steps"))]
    refused = train(root, *words, "trainer.max_steps=2,x,3")
    assert refused.returncode == 2
    assert "1 of the sweep's 3 jobs would be refused, so none is started" in refused.stderr
    assert not (root / "sweep").exists()
    (root / "sweep/001-trainer.max_steps_3").mkdir(parents=True)
    (root / "sweep/001-trainer.max_steps_3/results.json").write_text("mine")
    partly = train(root, *words, "trainer.max_steps=2,3,4", "logger=wandb_offline")
    assert partly.returncode == 2
    assert partly.stderr.rstrip().splitlines()[-2] == "error: 1 of the sweep's jobs failed, the others are done:"
    for name in ("000-trainer.max_steps_2", "002-trainer.max_steps_4"):
        assert (root / "sweep" / name / "results.json").exists()
    ids = {path.name.rpartition("-")[2] for path in root.glob("sweep/*/wandb/offline-run-*")}
    assert ids == {path.read_text().strip() for path in root.glob("sweep/*/run_id")}
    assert len(ids) == 2
    assert (root / "sweep/001-trainer.max_steps_3/results.json").read_text() == "mine"


def losses(folder: Path) -> dict[str, str]:
    rows = [row for path in sorted(folder.glob("metrics/*/metrics.csv")) for row in csv.DictReader(path.open())]
    return {row["step"]: row["train/loss"] for row in rows if row.get("train/loss")}


def test_the_log_of_a_continued_run_is_that_of_the_undisturbed_one(root: Path) -> None:
    settings = ("trainer.log_every_steps=4", "trainer.val_every_steps=0")
    run(root, "whole", *settings, "trainer.max_steps=12")
    run(root, "parts", *settings, "trainer.max_steps=12", "callbacks.checkpoint.every_steps=6", "trainer.max_flops=1e5")
    done = run(root, "parts", *settings, "trainer.max_steps=12", "ckpt_path=last")
    assert done["compute"]["steps"] == 12
    assert losses(root / "parts") == losses(root / "whole")


def test_a_run_continued_at_its_last_step_spent_no_more_time(root: Path) -> None:
    before = run(root, "ended")["compute"]
    after = run(root, "ended", "ckpt_path=last")["compute"]
    assert after["seconds"] == pytest.approx(before["seconds"], abs=0.5)


def test_micro_batches_may_change_when_a_run_goes_on(root: Path) -> None:
    settings = ("trainer.val_every_steps=4",)
    whole = run(root, "micro-whole", *settings, "trainer.max_steps=11", "data.micro_batch_sequences=8")
    run(root, "micro-parts", *settings, "trainer.max_steps=5", "data.micro_batch_sequences=8")
    smaller = ("data.micro_batch_sequences=2", "ckpt_path=last")
    parts = run(root, "micro-parts", *settings, "trainer.max_steps=11", *smaller)
    assert parts["compute"]["steps"] == whole["compute"]["steps"] == 11
    assert parts["compute"]["tokens"] == whole["compute"]["tokens"]
    assert parts["metrics"]["val/nll"] == pytest.approx(whole["metrics"]["val/nll"], rel=1e-5)
