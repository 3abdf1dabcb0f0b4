"""Runs beside one another: how many at once, their logs, their ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from sm_diffusion.reproduction import experiment as experiments
from sm_diffusion.reproduction import rows, run
from sm_diffusion.reproduction.workers import Processes, call, log_of
from sm_diffusion.types import UserError
from tests.helpers.trainers import Trainer, compose, rows_of


class Recorder(Processes):
    """Runs the stand-in for the programs one after another, and notes how many ran at once."""

    def __init__(self, slots: int, act: Callable[[Sequence[str]], int]) -> None:
        super().__init__(slots, threads=1)
        self.act = act
        self.waiting: dict[Path, Sequence[str]] = {}
        self.most = 0

    def start(self, folder: Path, command: Sequence[str]) -> None:
        self.waiting[folder] = command
        self.most = max(self.most, len(self.waiting))

    def wait(self) -> tuple[Path, int, str]:
        folder = next(iter(self.waiting))
        command = self.waiting.pop(folder)
        return folder, self.act(command), "the end of its log"


def test_independent_runs_go_at_once_and_dependent_ones_wait(evaluated: Trainer) -> None:
    planned = rows.plan_runs(experiments.load_experiment("toy"), compose=compose)
    workers = Recorder(3, evaluated)
    run.execute(planned, planned, name="toy", overwrite=False, workers=workers)
    assert workers.most == 2  # binary and soft
    assert sorted(rows_of(evaluated)) == ["binary", "pretrain", "samples", "soft"]


def test_a_failure_among_several_starts_nothing_new_and_shows_the_log(trainer: Trainer) -> None:
    trainer.fails_at = "pretrain"
    planned = rows.plan_runs(experiments.load_experiment("toy"), seeds=[1, 2], compose=compose)
    with pytest.raises(UserError, match=r"row pretrain .seed 1. failed, status 3") as error:
        run.execute(planned, planned, name="toy", overwrite=False, workers=Recorder(2, trainer))
    assert "the end of its log" in str(error.value)
    assert sorted(rows_of(trainer)) == ["pretrain", "pretrain"]


def test_processes_have_logs_threads_and_an_end(tmp_path: Path) -> None:
    workers = Processes(2, threads=1)
    workers.environment["OMP_NUM_THREADS"] = "1"
    says = "import os; print('threads', os.environ['OMP_NUM_THREADS']); raise SystemExit(4)"
    workers.start(tmp_path / "a", [sys.executable, "-c", says])
    assert workers.wait() == (tmp_path / "a", 4, "threads 1")
    assert log_of(tmp_path / "a").read_text() == "threads 1\n"
    workers.start(tmp_path / "b", [sys.executable, "-c", "import time; time.sleep(120)"])
    child = workers.running[tmp_path / "b"]
    workers.stop()
    assert child.returncode == -signal.SIGTERM
    assert not workers.running


def test_call_returns_the_status() -> None:
    assert call([sys.executable, "-c", "raise SystemExit(5)"]) == 5
