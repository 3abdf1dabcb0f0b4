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
from typing import Any

import pytest
import yaml
from filelock import FileLock

from sm_diffusion import tools
from sm_diffusion.evaluation.results import write_json
from sm_diffusion.tools import cli, run
from sm_diffusion.tools.config_cmd import composed
from sm_diffusion.types import UserError
from tests.unit.test_tools_experiment import make_experiment, make_run, row_config

RUNS = Path("runs")


def compose(overrides: Sequence[str]) -> dict[str, Any]:
    """What Hydra would make of the toy experiment; `trainer.max_steps` is the only free setting."""
    given = dict(word.split("=", 1) for word in overrides)
    config = row_config(given["experiments"].split("/")[1])
    for key in ("name", "output_dir", "init_from"):
        config[key] = given.get(key, config[key])
    config["output_dir"] = given.get("output_dir", f"runs/{config['name']}")
    config["seed"] = int(given.get("seed", config["seed"]))
    config["trainer"]["max_steps"] = int(given.get("trainer.max_steps", 100))
    return config


class Trainer:
    """Stands for train.py: records its calls and leaves what a run leaves, or fails or stops half-way."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.fails_at: str | None = None
        self.interrupted_at: str | None = None

    def __call__(self, command: Sequence[str]) -> int:
        assert command[0] == sys.executable
        assert command[1].endswith("train.py")
        words = list(command[2:])
        self.calls.append(words)
        config = compose([word for word in words if not word.startswith(("ckpt_path", "overwrite"))])
        folder = Path(config["output_dir"])
        if config["init_from"] is not None:
            assert Path(config["init_from"]).is_file(), "started before what it starts from"
        if self.fails_at == folder.name:
            return 3
        if "overwrite=true" in words:
            shutil.rmtree(folder)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights")
        if self.interrupted_at == folder.name:
            raise KeyboardInterrupt
        results = {"metrics": {"val/ppl": 12.0}, "compute": {}, "omegas": None, "config": config}
        write_json(folder / "results.json", {"seed": config["seed"], "git_commit": "abc", **results})
        return 0


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """The toy experiment in a fresh working directory, train.py replaced."""
    fake = Trainer()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tools, "EXPERIMENTS", make_experiment(tmp_path / "experiments"))
    monkeypatch.setattr(run, "_compose_train", compose)
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
    (tools.EXPERIMENTS / "toy" / "experiment.yaml").write_text("rows: [soft, pretrain, binary]")
    assert cli.main(["run", "toy"]) == 0
    assert rows_of(trainer) == ["pretrain", "soft", "binary"]


def test_circle_is_refused() -> None:
    def item(row: str, needs: str) -> run.RowRun:
        return run.RowRun(row, 1, RUNS / row, (), RUNS / needs, tools.State.MISSING)

    with pytest.raises(UserError, match="in a circle: a, b"):
        run._ordered([item("a", "b"), item("b", "a")])


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
    planned = run.plan_runs(tools.load_experiment("toy"), runs=elsewhere, compose=compose)
    assert f"output_dir='{elsewhere}/toy/soft'" in planned[2].overrides
    assert f"init_from='{elsewhere}/toy/pretrain/checkpoints/last.ckpt'" in planned[2].overrides


@pytest.mark.parametrize("value", ["/plain/path-1.x", "a b", "it's", "back\\slash", "a\\'b\\", "x=y,{z}"])
def test_quoting_is_what_hydra_reads(value: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(f"key={run.quoted(value)}").value() == value


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
    experiment = tools.load_experiment("toy")
    planned = run.plan_runs(experiment, compose=compose)
    run.execute(planned, planned, experiment=experiment, **options)


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


def test_shipped_experiments_compose_for_any_seed(tmp_path: Path) -> None:
    for name in tools.list_experiments():
        experiment = tools.load_experiment(name)
        planned = run.plan_runs(experiment, seeds=[11], runs=tmp_path / "x y")
        assert len(planned) == len(experiment.rows)
        for item in planned:
            config = composed("train", item.overrides)
            assert Path(config["output_dir"]) == item.folder == tmp_path / "x y" / name / f"{item.row}-seed11"
            assert config["seed"] == 11
            assert config["name"] == f"{name}/{item.row}-seed11"
            if item.needs is not None:
                assert Path(config["init_from"]).is_relative_to(item.needs)


# ----------------------------------------------------------------------------------------------- the real subprocess


def test_call_returns_the_status() -> None:
    assert run.call([sys.executable, "-c", "raise SystemExit(5)"]) == 5


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
from sm_diffusion.tools.run import call
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
    with subprocess.Popen(command, cwd=tools.ROOT, env={**os.environ, "PYTHONPATH": str(tools.ROOT)}) as parent:
        _wait_for((tmp_path / "ready").exists)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(timeout=60) == 128 + signal.SIGTERM
    assert (tmp_path / "saved").exists()
