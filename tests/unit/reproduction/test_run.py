"""`smd run`: what is missing is run once, in order, and nothing that is finished is touched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from filelock import FileLock
from hydra.types import RunMode

from sm_diffusion import paths
from sm_diffusion.cli import main as cli
from sm_diffusion.config import store
from sm_diffusion.files import read_json, write_json
from sm_diffusion.reproduction import experiment as experiments
from sm_diffusion.reproduction import rows, run
from sm_diffusion.reproduction.programs import quoted
from sm_diffusion.reproduction.workers import Processes, Terminal, call, log_of
from sm_diffusion.types import UserError
from tests.helpers.experiments import make_experiment, make_run, row_config

RUNS = Path("runs")


def compose(program: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What Hydra would make of the toy experiment; `trainer.max_steps` is the only free setting of training."""
    given = dict(word.split("=", 1) for word in overrides)
    row = given["experiments"].split("/")[1]
    if program == "eval":
        return {
            "checkpoint": given.get("checkpoint", "runs/toy/soft/checkpoints/last.ckpt"),
            "output_dir": given.get("output_dir", f"runs/toy/{row}"),
            "seed": int(given.get("seed", 1)),
            "weights": given.get("weights", "ema"),
        }
    config = row_config(row)
    if "init_from" in given:
        config["init_from"] = given["init_from"]
    if "logger.wandb" in given:
        config["logger"] = {"wandb": given["logger.wandb"], "group": given.get("logger.group")}
    for key in ("name", "output_dir", "init_from"):
        config[key] = given.get(key, config[key])
    config["output_dir"] = given.get("output_dir", f"runs/{config['name']}")
    config["seed"] = int(given.get("seed", config["seed"]))
    config["trainer"]["max_steps"] = int(given.get("trainer.max_steps", 100))
    return config


class Trainer:
    """Stands for train.py and eval.py: records its calls and leaves what a run leaves, or fails or stops half-way."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.trained = 0
        self.fails_at: str | None = None
        self.interrupted_at: str | None = None

    def __call__(self, command: Sequence[str]) -> int:
        assert command[0] == sys.executable
        words = list(command[2:])
        self.calls.append(words)
        if command[1].endswith("eval.py"):
            return self.evaluate(words)
        assert command[1].endswith("train.py")
        config = compose("train", [word for word in words if not word.startswith(("ckpt_path", "overwrite"))])
        folder = Path(config["output_dir"])
        if config["init_from"] is not None:
            assert Path(config["init_from"]).is_file(), "started before what it starts from"
        if self.fails_at == folder.name:
            return 3
        if "overwrite=true" in words:
            shutil.rmtree(folder)
        self.trained += 1
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights")
        if self.interrupted_at == folder.name:
            raise KeyboardInterrupt
        results = {"metrics": {"val/ppl": 12.0}, "compute": {}, "omegas": None, "config": config}
        checkpoint = {"checkpoint_sha256": f"weights {self.trained}"}
        write_json(folder / "results.json", {"seed": config["seed"], "git_commit": "abc", **results, **checkpoint})
        return 0

    def evaluate(self, words: list[str]) -> int:
        config = compose("eval", words)
        folder, start = Path(config["output_dir"]), Path(config["checkpoint"])
        assert start.is_file(), "started before what it starts from"
        folder.mkdir(parents=True, exist_ok=True)
        if self.interrupted_at == folder.name:
            raise KeyboardInterrupt
        made_from = read_json(start.parents[1] / "results.json").get("checkpoint_sha256")
        about = {"seed": config["seed"], "config": config, "checkpoint_sha256": made_from}
        write_json(folder / "results.json", {"metrics": {"gen/entropy": 2.0}, **about})
        return 0


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """The toy experiment in a fresh working directory, train.py replaced."""
    fake = Trainer()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "EXPERIMENTS", make_experiment(tmp_path / "experiments"))
    monkeypatch.setattr(rows, "compose_row", compose)
    monkeypatch.setattr(run, "call", fake)
    return fake


def rows_of(trainer: Trainer) -> list[str]:
    return [words[0].removeprefix("experiments=toy/") for words in trainer.calls]


def test_runs_all_then_nothing(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy"]) == 0
    assert trainer.calls == [[f"experiments=toy/{row}"] for row in ("pretrain", "binary", "soft")]
    out = capsys.readouterr().out
    assert "val PPL" in out
    assert "runs/toy/soft/results.json" in out
    assert cli.main(["run", "toy"]) == 0
    assert len(trainer.calls) == 3


def test_order_follows_what_rows_start_from(trainer: Trainer) -> None:
    (experiments.EXPERIMENTS / "toy" / "experiment.yaml").write_text("rows: [soft, pretrain, binary]")
    assert cli.main(["run", "toy"]) == 0
    assert rows_of(trainer) == ["pretrain", "soft", "binary"]


def test_circle_is_refused(trainer: Trainer) -> None:
    def circle(program: str, overrides: Sequence[str]) -> dict[str, Any]:
        config = compose(program, overrides)
        other = {"pretrain": "soft", "soft": "pretrain", "binary": "pretrain"}[Path(config["name"]).name]
        return config | {"init_from": f"runs/toy/{other}/checkpoints/last.ckpt"}

    with pytest.raises(UserError, match="in a circle: pretrain, soft"):
        rows.plan_runs(experiments.load_experiment("toy"), compose=circle)


def test_dry_run_says_and_does_nothing(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(RUNS, "pretrain")
    assert cli.main(["run", "toy", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "runs/toy/pretrain: done" in out
    assert "runs/toy/soft: to run" in out
    assert "train.py experiments=toy/soft\n" in out
    assert trainer.calls == []


def test_other_seeds_start_from_their_own(trainer: Trainer) -> None:
    assert cli.main(["run", "toy", "--seeds", "1,2"]) == 0
    assert ["experiments=toy/soft"] in trainer.calls
    assert [
        "experiments=toy/soft",
        "seed=2",
        "name=toy/soft-seed2",
        "init_from=runs/toy/pretrain-seed2/checkpoints/last.ckpt",
    ] in trainer.calls
    assert (RUNS / "toy" / "soft-seed2" / "results.json").is_file()
    assert len(trainer.calls) == 6


def test_extra_overrides_and_another_folder(trainer: Trainer, tmp_path: Path) -> None:
    elsewhere = tmp_path / "a b"
    assert cli.main(["run", "toy", "trainer.max_steps=5", "--runs", "smoke", "--only", "pretrain"]) == 0
    assert trainer.calls == [["experiments=toy/pretrain", "trainer.max_steps=5", "output_dir=smoke/toy/pretrain"]]
    assert cli.main(["run", "toy", "--dry-run", "--runs", str(elsewhere), "trainer.max_steps=5"]) == 0
    planned = rows.plan_runs(experiments.load_experiment("toy"), runs=elsewhere, compose=compose)
    assert f"output_dir='{elsewhere}/toy/soft'" in planned[2].overrides
    assert f"init_from='{elsewhere}/toy/pretrain/checkpoints/last.ckpt'" in planned[2].overrides


@pytest.mark.parametrize("value", ["/plain/path-1.x", "a b", "it's", "back\\slash", "a\\'b\\", "x=y,{z}"])
def test_quoting_is_what_hydra_reads(value: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(f"key={quoted(value)}").value() == value


def test_failure_stops_with_one_line_and_the_next_call_goes_on(
    trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.fails_at = "binary"
    assert cli.main(["run", "toy"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: row binary (seed 1) failed, status 3")
    assert error.count("\n") == 1
    assert rows_of(trainer) == ["pretrain", "binary"]
    trainer.fails_at = None
    assert cli.main(["run", "toy"]) == 0
    assert rows_of(trainer)[2:] == ["binary", "soft"]


def test_interrupted_run_is_continued(trainer: Trainer) -> None:
    trainer.interrupted_at = "binary"
    assert cli.main(["run", "toy"]) == 130
    trainer.interrupted_at = None
    assert cli.main(["run", "toy"]) == 0
    assert trainer.calls[2] == ["experiments=toy/binary", "ckpt_path=last"]


def test_run_stopped_before_its_first_checkpoint_starts_again(trainer: Trainer) -> None:
    folder = RUNS / "toy" / "pretrain"
    folder.mkdir(parents=True)
    (folder / "environment.json").write_text("{}")
    assert cli.main(["run", "toy", "--only", "pretrain"]) == 0
    assert trainer.calls == [["experiments=toy/pretrain", "overwrite=true"]]


def test_results_without_success_are_not_believed(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "call", lambda command: 0)
    with pytest.raises(UserError, match=r"pretrain .seed 1. wrote no runs/toy/pretrain/results.json"):
        _execute(overwrite=False)


def _execute(**options: Any) -> None:
    experiment = experiments.load_experiment("toy")
    planned = rows.plan_runs(experiment, compose=compose)
    run.execute(planned, planned, name="toy", workers=Terminal(run.call), **options)


def test_other_settings_are_never_overwritten_unasked(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    for row in ("pretrain", "binary", "soft"):
        make_run(RUNS, row)
    assert cli.main(["run", "toy", "trainer.max_steps=7"]) == 2
    error = capsys.readouterr().err
    assert "runs/toy/pretrain: holds a run with other settings (trainer.max_steps: 100 -> 7)" in error
    assert "--overwrite" in error
    assert cli.main(["run", "toy", "trainer.max_steps=7", "--dry-run"]) == 0
    assert "  trainer.max_steps: 100 -> 7\n  refused without --overwrite\n" in capsys.readouterr().out
    assert trainer.calls == []
    assert cli.main(["run", "toy", "trainer.max_steps=7", "--overwrite"]) == 0
    assert [words[-1] for words in trainer.calls] == ["overwrite=true"] * 3


def test_what_starts_from_a_new_run_is_run_again_even_after_an_interruption(trainer: Trainer) -> None:
    for row in ("pretrain", "binary", "soft"):
        make_run(RUNS, row)
    config = RUNS / "toy" / "pretrain" / "results.json"
    config.write_text(config.read_text().replace('"max_steps": 100', '"max_steps": 50'))
    trainer.interrupted_at = "binary"
    assert cli.main(["run", "toy", "--overwrite"]) == 130
    trainer.interrupted_at = None
    assert cli.main(["run", "toy"]) == 0
    assert [(words[0], words[-1]) for words in trainer.calls] == [
        ("experiments=toy/pretrain", "overwrite=true"),
        ("experiments=toy/binary", "overwrite=true"),
        ("experiments=toy/binary", "ckpt_path=last"),
        ("experiments=toy/soft", "overwrite=true"),
    ]
    assert cli.main(["run", "toy"]) == 0
    assert len(trainer.calls) == 4


def test_only_needs_what_it_starts_from(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy", "--only", "soft"]) == 2
    assert "starts from runs/toy/pretrain, which is to run; run that row first" in capsys.readouterr().err
    assert cli.main(["run", "toy", "--only", "sof"]) == 2
    assert "--only sof: no such row; choose from pretrain, binary, soft" in capsys.readouterr().err
    assert cli.main(["run", "toy", "--only", "pretrain", "--only", "soft"]) == 0
    assert rows_of(trainer) == ["pretrain", "soft"]


def test_two_at_once_are_refused(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    (RUNS / "toy").mkdir(parents=True)
    with FileLock(RUNS / "toy" / ".lock"):
        assert cli.main(["run", "toy"]) == 2
    assert "another smd run is at work there" in capsys.readouterr().err


def test_wrong_seeds(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", "toy", "--seeds", "1,x"])
    assert "give numbers separated by commas" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- evaluation rows


@pytest.fixture
def evaluated(trainer: Trainer) -> Trainer:
    """The toy experiment with an evaluation row, `samples`, of `soft`."""
    folder = experiments.EXPERIMENTS / "toy"
    (folder / "samples.yaml").write_text("# @package _global_\ncheckpoint: runs/toy/soft/checkpoints/last.ckpt\n")
    (folder / "experiment.yaml").write_text("rows: [pretrain, binary, soft]\neval_rows: [samples]\n")
    return trainer


def test_evaluation_rows_run_after_what_they_evaluate(evaluated: Trainer) -> None:
    assert experiments.load_experiment("toy").rows == ("pretrain", "binary", "soft", "samples")
    (experiments.EXPERIMENTS / "toy" / "experiment.yaml").write_text("rows: [samples, soft]\neval_rows: [samples]\n")
    assert cli.main(["run", "toy"]) == 0
    assert rows_of(evaluated) == ["pretrain", "soft", "samples", "binary"]
    assert cli.main(["run", "toy"]) == 0
    assert len(evaluated.calls) == 4


def test_evaluation_rows_of_other_seeds_take_their_checkpoint(evaluated: Trainer) -> None:
    assert cli.main(["run", "toy", "--seeds", "2"]) == 0
    checkpoint = "checkpoint=runs/toy/soft-seed2/checkpoints/last.ckpt"
    assert evaluated.calls[-1] == ["experiments=toy/samples", "seed=2", "output_dir=runs/toy/samples-seed2", checkpoint]


def test_seeds_of_the_experiment_are_the_default(evaluated: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    (experiments.EXPERIMENTS / "toy" / "experiment.yaml").write_text("seeds: [1, 7]\neval_rows: [samples]\n")
    assert cli.main(["run", "toy", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("samples-seed7: to run") == 1


def test_interrupted_evaluation_is_called_again(evaluated: Trainer) -> None:
    evaluated.interrupted_at = "samples"
    assert cli.main(["run", "toy"]) == 130
    evaluated.interrupted_at = None
    assert cli.main(["run", "toy"]) == 0
    assert evaluated.calls[3:] == [["experiments=toy/samples"]] * 2


def test_evaluation_of_weights_trained_anew_is_repeated(evaluated: Trainer) -> None:
    """By `smd run`, in one call or in two, or by train.py alone: the hash of the weights tells."""
    assert cli.main(["run", "toy"]) == 0
    results = RUNS / "toy" / "soft" / "results.json"
    results.write_text(results.read_text().replace('"weights 3"', '"weights 9"'))
    assert cli.main(["run", "toy"]) == 0
    assert rows_of(evaluated)[4:] == ["samples"]
    assert cli.main(["run", "toy", "--only", "soft", "--overwrite", "trainer.max_steps=5"]) == 2  # pretrain differs
    assert cli.main(["run", "toy", "--overwrite", "trainer.max_steps=5"]) == 0
    assert rows_of(evaluated)[5:] == ["pretrain", "binary", "soft", "samples"]


def test_training_from_weights_trained_anew_is_repeated(trainer: Trainer) -> None:
    assert cli.main(["run", "toy"]) == 0
    write_json(RUNS / "toy" / "soft" / "environment.json", {"init_sha256": "of another pretrain"})
    write_json(RUNS / "toy" / "binary" / "environment.json", {"init_sha256": "weights 1"})
    assert cli.main(["run", "toy"]) == 0
    assert trainer.calls[3:] == [["experiments=toy/soft", "overwrite=true"]]


def test_other_settings_of_an_evaluation_need_consent(evaluated: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy"]) == 0
    assert cli.main(["run", "toy", "weights=raw"]) == 2
    assert "runs/toy/samples: holds a run with other settings (weights: ema -> raw)" in capsys.readouterr().err
    assert cli.main(["run", "toy", "weights=raw", "--overwrite"]) == 0
    assert evaluated.calls[4:] == [["experiments=toy/samples", "weights=raw"]]


def test_overrides_go_to_the_rows_that_know_them(evaluated: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy", "--dry-run", "trainer.max_steps=5", "weights=raw"]) == 0
    out = capsys.readouterr().out
    assert "train.py experiments=toy/soft trainer.max_steps=5\n" in out
    assert "eval.py experiments=toy/samples weights=raw\n" in out
    (experiments.EXPERIMENTS / "toy" / "experiment.yaml").write_text("rows: [pretrain]\n")
    (experiments.EXPERIMENTS / "toy" / "samples.yaml").unlink()
    assert cli.main(["run", "toy", "--dry-run", "weights=raw"]) == 2
    assert "weights=raw: no row of toy takes it" in capsys.readouterr().err


def test_rows_of_other_experiments_are_run_first(trainer: Trainer) -> None:
    """A training row of another experiment is one start for all seeds; an evaluation follows its seed."""
    folder = experiments.EXPERIMENTS / "later"
    folder.mkdir()
    (folder / "tuned.yaml").write_text("")
    (folder / "samples.yaml").write_text("")
    (folder / "experiment.yaml").write_text("eval_rows: [samples]")

    def composed(program: str, overrides: Sequence[str]) -> dict[str, Any]:
        config = compose(program, [word.replace("later/tuned", "toy/soft") for word in overrides])
        if overrides[0] == "experiments=later/tuned":
            config["output_dir"] = "runs/later/tuned"
        return config

    planned = rows.plan_runs(experiments.load_experiment("later"), seeds=[2], compose=composed)
    assert [(item.experiment, item.folder.name) for item in planned] == [
        ("toy", "pretrain"),
        ("later", "tuned-seed2"),
        ("toy", "pretrain-seed2"),
        ("toy", "soft-seed2"),
        ("later", "samples-seed2"),
    ]
    assert run.selected(planned, ["samples"], experiments.load_experiment("later")) == [planned[-1]]


def test_runs_that_log_to_wandb_are_a_group(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy", "--dry-run", "logger.wandb=offline"]) == 0
    assert "experiments=toy/soft logger.wandb=offline logger.group=toy\n" in capsys.readouterr().out
    assert cli.main(["run", "toy", "--dry-run", "logger.wandb=offline", "logger.group=mine"]) == 0
    assert "logger.group=toy" not in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------- several at once


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--jobs", "0"], "--jobs 0: give at least 1"),
        (["--launcher", "slorm"], "--launcher slorm: no such launcher; choose from basic"),
    ],
)
def test_wrong_jobs_and_launchers(
    trainer: Trainer, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert cli.main(["run", "toy", *words]) == 2
    assert message in capsys.readouterr().err


def test_launchers_get_one_run_each(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy", "--dry-run", "--launcher", "basic", "--only", "soft"]) == 0
    command = "train.py --multirun hydra/launcher=basic hydra.sweep.dir=runs/toy/.jobs/soft"
    assert f"{command} +hydra.job.env_set.SM_DIFFUSION_ONE_RUN=1 experiments=toy/soft\n" in capsys.readouterr().out


@pytest.mark.parametrize(("settings", "kept"), [({}, False), ({"SM_DIFFUSION_ONE_RUN": "1"}, True)])
def test_only_runs_of_a_sweep_get_folders_of_their_own(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], kept: bool
) -> None:
    found = SimpleNamespace(
        mode=RunMode.MULTIRUN,
        job=SimpleNamespace(num=3, env_set=settings),
        overrides=SimpleNamespace(task=["model=dit_tiny", "overwrite=True", "seed=2"]),
    )
    monkeypatch.setattr(store.HydraConfig, "get", lambda: found)
    monkeypatch.setattr(sys, "argv", ["launcher"])  # a job's own process has another command line
    monkeypatch.setenv(store.TYPED, '["-m", "model=dit_tiny", "overwrite=true", "seed=1,2"]')
    folder = store._per_job(SimpleNamespace(output_dir="runs/a")).output_dir
    assert folder == ("runs/a" if kept else "runs/a/003-seed=2")


# ----------------------------------------------------------------------------------------------- the real subprocess


def test_call_returns_the_status() -> None:
    assert call([sys.executable, "-c", "raise SystemExit(5)"]) == 5


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
