"""Whole programs that are stopped, refused or started twice: what the user had is there afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from sm_diffusion.app.evaluate import evaluate
from sm_diffusion.config.compose import compose_config
from sm_diffusion.paths import ROOT
from sm_diffusion.types import UserError
from tests.helpers.faults import content_of
from tests.helpers.runs import overrides, run

LONG = ("trainer.max_steps=100000", "trainer.val_every_steps=0", "callbacks.checkpoint.every_steps=100000")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(root: Path) -> Path:
    run(root, "finished")
    return root / "finished"


class Program:
    """train.py in a session of its own, as started from a terminal."""

    def __init__(self, root: Path, name: str, *extra: str) -> None:
        command = [sys.executable, str(ROOT / "train.py"), *overrides(root, name, "trainer.threads=1", *extra)]
        self.process = subprocess.Popen(
            command, cwd=root, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    def wait_until(self, moment: Callable[[], bool]) -> None:
        limit = time.monotonic() + 120
        while not moment():
            assert self.process.poll() is None, self.process.communicate()[1]
            assert time.monotonic() < limit
            time.sleep(0.01)

    def interrupt(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def ended(self) -> tuple[int, list[str]]:
        said = self.process.communicate(timeout=120)[1]
        return self.process.returncode, said.splitlines()


@pytest.fixture
def start(root: Path) -> Iterator[Callable[..., Program]]:
    started: list[Program] = []

    def begin(name: str, *extra: str) -> Program:
        started.append(Program(root, name, *extra))
        return started[-1]

    yield begin
    for program in started:
        if program.process.poll() is None:
            os.killpg(program.process.pid, signal.SIGKILL)
        program.process.communicate()


def logged(folder: Path) -> bool:
    return any("train/loss" in path.read_text() for path in folder.glob("metrics/*/metrics.csv"))


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("data.global_batch_sequences=16", r"data\.global_batch_sequences=16: the run was begun with 8"),
        ("trainer.max_steps=5", r"trainer\.max_steps=5: .* at step 6 already"),
        ("model.width=24", "does not fit this configuration"),
        ("seed=2", "seed was 1 and is 2"),
        ("callbacks.checkpoint.every_steps=0", r"every_steps=0: must be positive"),
    ],
)
def test_a_refused_continuation_touches_nothing(root: Path, finished: Path, setting: str, expected: str) -> None:
    before = content_of(finished)
    with pytest.raises(UserError, match=expected):
        run(root, "finished", "ckpt_path=last", setting)
    assert content_of(finished) == before


@pytest.mark.parametrize("extra", [(), ("overwrite=true",)])
def test_files_that_are_no_run_are_left_alone(root: Path, extra: tuple[str, ...]) -> None:
    folder = root / f"precious{len(extra)}"
    folder.mkdir(exist_ok=True)
    for name in ("thesis.tex", "config.yaml", "results.json"):
        (folder / name).write_text("mine")
    before = content_of(folder)
    with pytest.raises(UserError, match="no run of this program"):
        run(root, folder.name, *extra)
    assert content_of(folder) == before


@pytest.mark.parametrize("name", ["", "..", "../x", "a/../../x"])
def test_a_name_that_leaves_runs_is_refused(root: Path, name: str) -> None:
    with pytest.raises(UserError, match="must name a folder below runs/"):
        run(root, "x", f"name='{name}'", "overwrite=true")


def test_overwrite_replaces_a_run_and_keeps_notes(root: Path) -> None:
    run(root, "again", "trainer.max_steps=2")
    (root / "again/notes.txt").write_text("mine")
    out = run(root, "again", "trainer.max_steps=3", "overwrite=true")
    assert out["compute"]["steps"] == 3
    assert (root / "again/notes.txt").read_text() == "mine"
    assert len(list((root / "again/metrics").iterdir())) == 1


def test_auto_does_not_start_again_where_the_last_checkpoint_is_a_link_to_nothing(root: Path) -> None:
    run(root, "linked")
    last = root / "linked/checkpoints/last.ckpt"
    last.unlink()
    last.symlink_to("gone.ckpt")
    before = content_of(root / "linked")
    with pytest.raises(UserError, match=r"last\.ckpt is a link that leads nowhere"):
        run(root, "linked", "ckpt_path=auto")
    assert content_of(root / "linked") == before


def test_ctrl_c_in_training_saves_and_says_so(root: Path, start: Callable[..., Program]) -> None:
    program = start("interrupted", *LONG)
    program.wait_until(lambda: logged(root / "interrupted"))
    program.interrupt()
    status, said = program.ended()
    assert status == 130, said
    assert [line for line in said if "stopped by a signal at step" in line and "(exit status 130)" in line] == said[-1:]
    assert not any("Traceback" in line for line in said)
    assert (root / "interrupted/checkpoints/last.ckpt").exists()


def test_ctrl_c_in_the_imports_is_one_line(root: Path, start: Callable[..., Program]) -> None:
    program = start("early")
    time.sleep(1.0)
    program.interrupt()
    status, said = program.ended()
    assert (status, len(said)) == (130, 1), said
    assert said[0].startswith("interrupted")
    assert not (root / "early").exists()


def test_a_second_run_of_one_name_is_refused_in_one_line(root: Path, start: Callable[..., Program]) -> None:
    first = start("twice", *LONG)
    first.wait_until(lambda: (root / "twice/config.yaml").exists())
    with pytest.raises(UserError, match="another process"):
        run(root, "twice")
    with pytest.raises(UserError, match="another process"):
        run(root, "twice", "overwrite=true")
    first.wait_until(lambda: logged(root / "twice"))
    os.kill(first.process.pid, signal.SIGTERM)
    assert first.ended()[0] == 75
    out = run(root, "twice", "ckpt_path=last", "trainer.max_steps=100000", "trainer.max_flops=1")
    assert json.loads((root / "twice/results.json").read_text())["compute"]["steps"] == out["compute"]["steps"]


def test_results_of_another_evaluation_are_not_replaced(root: Path, finished: Path) -> None:
    out = root / "evaluation"
    settings = [f"output_dir={out}", "accelerator=cpu"]
    first = evaluate(compose_config("eval", [f"checkpoint={finished}", *settings]))  # a run folder opens
    assert first["metrics"]["val/nll"] > 0
    evaluate(compose_config("eval", [f"checkpoint={finished}", "weights=raw", *settings]))
    before = content_of(out)
    zero_shot = [f"checkpoint={finished}", "evaluator=zero_shot", "evaluator.sources=[lambada]"]
    for words in ([f"checkpoint={finished / 'checkpoints/last.ckpt'}"], zero_shot):
        with pytest.raises(UserError, match=r"output_dir=.*: holds the results of .*overwrite=true"):
            evaluate(compose_config("eval", [*words, *settings]))
    assert content_of(out) == before
    (out / "results.json").write_text("mine")
    with pytest.raises(UserError, match="no results of an evaluation"):
        evaluate(compose_config("eval", [f"checkpoint={finished}", *settings]))


def test_a_soft_mask_that_would_change_nothing_is_refused(root: Path, finished: Path) -> None:
    run(root, "plain", "variant=mdlm", "trainer.max_steps=1")
    for name, reason in (("plain", "a plain MDLM without omegas"), ("finished", "a soft mask of its own")):
        words = [f"checkpoint={root / name}", "soft_mask=warm", f"output_dir={root / 'e'}"]
        with pytest.raises(UserError, match=f"soft_mask: .*{reason}"):
            evaluate(compose_config("eval", words))
