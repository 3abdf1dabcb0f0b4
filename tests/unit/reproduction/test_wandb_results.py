"""Results from W&B: what train.py leaves in a run's summary, read back through a stand-in of W&B's API."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import wandb

from sm_diffusion.app.publish import publish, summary_of
from sm_diffusion.cli import main as cli
from sm_diffusion.evaluation.results import read_results
from sm_diffusion.reproduction import experiment as experiments
from sm_diffusion.reproduction.report.table import report
from sm_diffusion.types import UserError
from tests.helpers.experiments import make_experiment, make_run


class FakeApi:
    """The part of wandb.Api that is used: runs of a project, in the order of creation, filtered by name."""

    runs_of: ClassVar[list[Any]] = []
    fails: Exception | None = None

    def __init__(self, timeout: int) -> None:
        assert timeout > 0

    def runs(self, path: str, filters: dict[str, Any], order: str, lazy: bool) -> list[Any]:
        if self.fails is not None:
            raise self.fails
        assert (path, order, lazy) == ("team/project", "+created_at", False)
        assert filters == {"display_name": {"$regex": "^toy/"}}
        return self.runs_of


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[FakeApi]:
    monkeypatch.setattr(wandb, "Api", FakeApi)
    monkeypatch.setattr(FakeApi, "runs_of", [])
    monkeypatch.setattr(FakeApi, "fails", None)
    return FakeApi


@pytest.fixture
def toy(tmp_path: Path) -> experiments.Experiment:
    return experiments.load_experiment("toy", make_experiment(tmp_path / "experiments"))


def uploaded(folder: Path, *, state: str = "finished", **summary: Any) -> SimpleNamespace:
    """The W&B run of a run folder, with what is logged by the step beside what `publish` adds."""
    results = read_results(folder / "results.json")
    logged = {"train/loss": 2.0, "omega/s": 0.5, "trainer/global_step": 99, "epoch": 0, "_runtime": 12.5}
    return SimpleNamespace(
        id=folder.name,
        name=results["name"],
        state=state,
        commit=None,
        config=results["config"] | {"_wandb": {}},
        summary=logged | summary_of(results) | summary,
    )


def test_table_is_that_of_the_folders(toy: experiments.Experiment, tmp_path: Path, api: type[FakeApi]) -> None:
    runs = tmp_path / "runs"
    for seed in (1, 2):
        for row in ("pretrain", "soft"):
            api.runs_of.append(uploaded(make_run(runs, row, seed=seed, ppl=10.0 + seed)))
    assert report(toy, runs="wandb:team/project") == report(toy, runs=runs)
    assert report(toy, runs="wandb:team/project", style="csv") == report(toy, runs=runs, style="csv")


def test_what_is_odd_is_said(toy: experiments.Experiment, tmp_path: Path, api: type[FakeApi]) -> None:
    old = uploaded(make_run(tmp_path / "old", "soft", ppl=99.0))
    new = uploaded(make_run(tmp_path / "new", "soft", ppl=11.0))
    api.runs_of = [
        old,
        new,
        uploaded(make_run(tmp_path / "new", "binary"), state="crashed"),
        uploaded(make_run(tmp_path / "new", "pretrain"), **{"val/ppl": "NaN"}),
        SimpleNamespace(id="x", name="toy/gone", state="finished", commit=None, config={}, summary={}),
    ]
    text = " ".join(report(toy, runs="wandb:team/project").split())
    assert "warning: team/project: 2 runs are named toy/soft; the newest finished one is shown" in text
    assert "11.00" in text
    assert "99.00" not in text
    assert "unfinished: wandb:team/project/binary (toy/binary, crashed)" in text
    assert "binary 0 not run" in text
    assert "warning: pretrain: val/ppl is NaN with seed 1" in text


def test_nothing_there_is_said(toy: experiments.Experiment, api: type[FakeApi]) -> None:
    text = report(toy, runs="wandb:team/project")
    assert "holds no run named toy/<row>" in text
    assert "not run" in text


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            wandb.errors.UsageError("No API key configured."),
            "wandb:team/project: No API key configured; log in with: wandb login",
        ),
        (
            wandb.errors.CommError("no route\nto host"),
            r"cannot be read \(no route to host\); check name, login and network",
        ),
        (ValueError("Could not find project x"), r"cannot be read \(Could not find project x\)"),
    ],
)
def test_failures_are_one_line(toy: experiments.Experiment, api: type[FakeApi], error: Exception, words: str) -> None:
    api.fails = error
    with pytest.raises(UserError, match=words) as found:
        report(toy, runs="wandb:team/project")
    assert "\n" not in str(found.value)


def test_missing_package_and_wrong_path(
    toy: experiments.Experiment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experiments, "EXPERIMENTS", toy.folder.parent)
    assert cli.main(["table", "toy", "--from", "wandb:project"]) == 2
    assert capsys.readouterr().err == "error: wandb:project: give wandb:entity/project\n"
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert cli.main(["table", "toy", "--from", "wandb:a/b"]) == 2
    assert "wandb is not installed; install it with: pip install wandb" in capsys.readouterr().err


def test_publish_reaches_wandb_loggers_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary: dict[str, Any] = {}
    config: dict[str, Any] = {}

    class Config:
        def update(self, values: dict[str, Any], *, allow_val_change: bool) -> None:
            assert allow_val_change
            config.update(values)

    class WandbLogger:
        experiment = SimpleNamespace(summary=summary, config=Config())

    loggers = ModuleType("lightning.pytorch.loggers")
    loggers.WandbLogger = WandbLogger  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lightning.pytorch.loggers", loggers)
    results = read_results(make_run(tmp_path, "soft", ppl=11.0) / "results.json")
    publish([object(), WandbLogger()], results)  # type: ignore[list-item]
    assert summary["val/ppl"] == 11.0
    assert summary["omegas/omega_s"] == 0.6
    assert summary["compute/flops"] == 2.5e12
    assert (summary["smd/seed"], summary["smd/git_commit"]) == (1, "0123456789abcdef")
    assert config["variant"]["name"] == "soft_masked"
    assert not any(isinstance(value, float) and math.isnan(value) for value in summary.values())
