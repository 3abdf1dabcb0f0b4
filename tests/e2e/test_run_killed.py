"""`smd run` killed while it trains and while it evaluates: the next calls finish, and the table is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sm_diffusion import paths
from sm_diffusion.paths import ROOT
from tests.helpers.runs import write_corpus

TRAINING, EVALUATION = ("mini_ablation_top_k", "binary"), ("mini_ablation_iso_compute", "binary")
STEPS = 40
TINY = (
    *("data=text_files", "data.tokenizer.kind=char", "data.validation_fraction=0.2", "data.length=16"),
    *("data.global_batch_sequences=8", "data.max_validation_sequences=32", "data.eval_batch_sequences=8"),
    *("model.width=16", "model.num_blocks=1", "model.num_heads=2", "model.cond_width=8", "init_from=null"),
    *(f"trainer.max_steps={STEPS}", "trainer.accelerator=cpu", "callbacks.plots=false"),
    *("callbacks.checkpoint.every_steps=5", "callbacks.checkpoint.verify=true", "trainer.threads=1"),
)


class Command:
    """`smd run` of one row in a process group of its own."""

    def __init__(self, root: Path, runs: str) -> None:
        self.root = root
        self.runs = root / runs

    def start(self, experiment: str, row: str) -> subprocess.Popen[bytes]:
        # The evaluation's plan asks how the training stands, so both are given the same settings.
        words = [*TINY, f"data.paths=[{self.root / 'corpus'}]", f"data.cache_dir={self.root / 'cache'}"]
        words += [] if (experiment, row) == TRAINING else ["accelerator=cpu", "batch_sequences=2"]
        command = [sys.executable, "-m", "sm_diffusion.cli.main", "run", experiment, "--only", row]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*command, "--runs", str(self.runs), *words], cwd=self.root, env=environment, start_new_session=True
        )

    def finish(self, experiment: str, row: str) -> None:
        assert self.start(experiment, row).wait() == 0

    def kill_when(self, experiment: str, row: str, moment: Callable[[], bool]) -> None:
        process = self.start(experiment, row)
        while process.poll() is None and not moment():
            time.sleep(0.02)
        assert process.poll() is None, "it ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def metrics(self, experiment: str, row: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.runs / experiment / row / "results.json").read_text())["metrics"]
        return found

    def table(self) -> str:
        command = [sys.executable, "-m", "sm_diffusion.cli.main", "table", EVALUATION[0], "--runs", str(self.runs)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=self.root, env=environment, check=True, capture_output=True, text=True)
        return done.stdout


@pytest.mark.slow
def test_killed_runs_are_finished_by_the_next_call(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus")
    whole, parts = Command(tmp_path, "whole"), Command(tmp_path, "parts")
    for experiment, row in (TRAINING, EVALUATION):
        whole.finish(experiment, row)

    checkpoint = parts.runs / TRAINING[0] / TRAINING[1] / "checkpoints" / "last.ckpt"
    parts.kill_when(*TRAINING, checkpoint.exists)
    assert not (checkpoint.parents[1] / "results.json").exists()
    parts.finish(*TRAINING)
    log = (checkpoint.parents[1] / "metrics").glob("version_*")
    assert len(list(log)) == 2  # it went on, it did not start again

    started = time.monotonic()
    parts.kill_when(*EVALUATION, lambda: time.monotonic() > started + 1 and _eval_started(parts))
    parts.finish(*EVALUATION)

    for experiment, row in (TRAINING, EVALUATION):
        assert parts.metrics(experiment, row) == whole.metrics(experiment, row)
    assert parts.table().replace(str(parts.runs), "") == whole.table().replace(str(whole.runs), "")


def _eval_started(command: Command) -> bool:
    """Whether some process evaluates into this folder of runs."""
    wanted = f"output_dir={command.runs / EVALUATION[0] / EVALUATION[1]}".encode()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in words and any(word.endswith(b"eval.py") for word in words):
            return True
    return False


CHILD = """
import pathlib, signal, sys, time
def stop(*_):
    pathlib.Path(sys.argv[1], "saved").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], "ready").touch()
time.sleep(120)
"""


PARENT = """
import sys
from sm_diffusion.reproduction.workers import call
sys.exit(call([sys.executable, *sys.argv[1:]]))
"""


def _wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("did not happen within a minute")


def test_sigterm_reaches_the_run_and_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    command = [sys.executable, "-c", PARENT, str(tmp_path / "child.py"), str(tmp_path)]
    with subprocess.Popen(command, cwd=paths.ROOT, env={**os.environ, "PYTHONPATH": str(paths.ROOT)}) as parent:
        _wait_for((tmp_path / "ready").exists)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(timeout=60) == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists()
