"""The toy experiment with a stand-in for the programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from sm_diffusion.reproduction import experiment as experiments
from sm_diffusion.reproduction import rows, run
from tests.helpers.experiments import make_experiment
from tests.helpers.trainers import Trainer, compose


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """The toy experiment in a fresh working directory, train.py replaced."""
    fake = Trainer()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "EXPERIMENTS", make_experiment(tmp_path / "experiments"))
    monkeypatch.setattr(rows, "compose_row", compose)
    monkeypatch.setattr(run, "call", fake)
    return fake


@pytest.fixture
def evaluated(trainer: Trainer) -> Trainer:
    """The toy experiment with an evaluation row, `samples`, of `soft`."""
    folder = experiments.EXPERIMENTS / "toy"
    (folder / "samples.yaml").write_text("# @package _global_\ncheckpoint: runs/toy/soft/checkpoints/last.ckpt\n")
    (folder / "experiment.yaml").write_text("rows: [pretrain, binary, soft]\neval_rows: [samples]\n")
    return trainer
