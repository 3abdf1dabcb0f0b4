"""`smd run`: what is missing is run once, in order, and nothing that is finished is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from sm_diffusion.cli import main as cli
from sm_diffusion.files import write_json
from sm_diffusion.reproduction import experiment as experiments
from sm_diffusion.reproduction import rows, run
from sm_diffusion.reproduction.workers import Terminal
from sm_diffusion.types import UserError
from tests.helpers.experiments import make_run
from tests.helpers.trainers import RUNS, Trainer, compose, rows_of


def test_runs_all_then_nothing(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy"]) == 0
    assert trainer.calls == [[f"experiments=toy/{row}"] for row in ("pretrain", "binary", "soft")]
    out = capsys.readouterr().out
    assert "val PPL" in out
    assert "runs/toy/soft/results.json" in out
    assert cli.main(["run", "toy"]) == 0
    assert len(trainer.calls) == 3


def test_dry_run_says_and_does_nothing(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    make_run(RUNS, "pretrain")
    assert cli.main(["run", "toy", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "runs/toy/pretrain: done" in out
    assert "runs/toy/soft: to run" in out
    assert "train.py experiments=toy/soft\n" in out
    assert trainer.calls == []


def test_extra_overrides_and_another_folder(trainer: Trainer, tmp_path: Path) -> None:
    elsewhere = tmp_path / "a b"
    assert cli.main(["run", "toy", "trainer.max_steps=5", "--runs", "smoke", "--only", "pretrain"]) == 0
    assert trainer.calls == [["experiments=toy/pretrain", "trainer.max_steps=5", "output_dir=smoke/toy/pretrain"]]
    assert cli.main(["run", "toy", "--dry-run", "--runs", str(elsewhere), "trainer.max_steps=5"]) == 0
    planned = rows.plan_runs(experiments.load_experiment("toy"), runs=elsewhere, compose=compose)
    assert f"output_dir='{elsewhere}/toy/soft'" in planned[2].overrides
    assert f"init_from='{elsewhere}/toy/pretrain/checkpoints/last.ckpt'" in planned[2].overrides


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


def test_two_at_once_are_refused(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    (RUNS / "toy").mkdir(parents=True)
    with FileLock(RUNS / "toy" / ".lock"):
        assert cli.main(["run", "toy"]) == 2
    assert "another smd run is at work there" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- evaluation rows


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
    assert evaluated.calls[4:] == [["experiments=toy/samples", "weights=raw", "overwrite=true"]]


def test_runs_that_log_to_wandb_are_a_group(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy", "--dry-run", "logger.wandb=offline"]) == 0
    assert "experiments=toy/soft logger.wandb=offline logger.group=toy\n" in capsys.readouterr().out
    assert cli.main(["run", "toy", "--dry-run", "logger.wandb=offline", "logger.group=mine"]) == 0
    assert "logger.group=toy" not in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------- several at once


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
