"""Rows: which are run, in which order, with which seeds and overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sm_diffusion.cli import main as cli
from sm_diffusion.reproduction import experiment as experiments
from sm_diffusion.reproduction import rows, run
from sm_diffusion.types import UserError
from tests.helpers.trainers import RUNS, Trainer, compose, rows_of


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


def test_only_needs_what_it_starts_from(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "toy", "--only", "soft"]) == 2
    assert "starts from runs/toy/pretrain, which is to run; run that row first" in capsys.readouterr().err
    assert cli.main(["run", "toy", "--only", "sof"]) == 2
    assert "--only sof: no such row; choose from pretrain, binary, soft" in capsys.readouterr().err
    assert cli.main(["run", "toy", "--only", "pretrain", "--only", "soft"]) == 0
    assert rows_of(trainer) == ["pretrain", "soft"]


def test_wrong_seeds(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["run", "toy", "--seeds", "1,x"])
    assert "give numbers separated by commas" in capsys.readouterr().err


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
