"""`smd search`: a real Optuna study over trials that a stand-in for train.py makes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from sm_diffusion.cli import main as cli
from sm_diffusion.files import write_json
from sm_diffusion.reproduction.search import search
from sm_diffusion.reproduction.workers import Processes

pytest.importorskip("optuna")
WORDS = ["experiments=mini_owt_continuation/english", "optim.lr=tag(log,interval(1e-4,1e-1))"]
WORDS += ["seed=range(1,4)", "trainer.max_steps=4", "trainer.val_every_steps=1"]


class Trainer(Processes):
    """Instead of processes: each look at it lets every run go on by one step, with a validation. A run's perplexity
    falls to 1000 x its learning rate, so that the smallest one is the best."""

    log: ClassVar[list[list[str]]] = []
    die_after: int | None = None  # steps in all, after which the search is interrupted
    status = 0
    steps = 0

    def __init__(self, slots: int, *, threads: int) -> None:
        self.slots = slots
        self.runs: dict[Path, tuple[float, int]] = {}
        self.asked: set[Path] = set()

    def start(self, folder: Path, command: Sequence[str]) -> None:
        Trainer.log.append(list(command))
        lr = next(float(word.partition("=")[2]) for word in command if word.startswith("optim.lr="))
        lines = (folder / "metrics" / "version_0" / "metrics.csv").parent.glob("*.csv")
        done = sum(len(path.read_text().splitlines()) - 1 for path in lines)
        self.runs[folder] = (lr, done)

    def ended(self) -> tuple[Path, int, str] | None:
        for folder, (lr, step) in self.runs.items():
            if Trainer.status or folder in self.asked or step == 4:
                del self.runs[folder]
                if not Trainer.status and step == 4:
                    write_json(folder / "results.json", {"metrics": {"val/ppl": 1000 * lr}})
                return folder, Trainer.status or (75 if folder in self.asked else 0), "what it said last"
        for folder, (lr, step) in self.runs.items():
            if Trainer.die_after == Trainer.steps:
                raise KeyboardInterrupt
            Trainer.steps += 1
            path = folder / "metrics" / "version_0" / "metrics.csv"
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_text("epoch,step,val/ppl\n")
            with path.open("a") as file:
                file.write(f"0,{step + 1},{1000 * lr + 4 - step}\n")
            self.runs[folder] = (lr, step + 1)
        return None

    def ask_to_stop(self, folder: Path) -> None:
        self.asked.add(folder)

    def stop(self) -> None:
        self.runs.clear()


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "Processes", Trainer)
    monkeypatch.setattr(search, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(search, "check", lambda _: {"trainer": {"val_every_steps": 1, "max_steps": 4}})
    Trainer.log, Trainer.die_after, Trainer.status, Trainer.steps = [], None, 0, 0


def records(name: str = "lr") -> list[dict[str, object]]:
    found = json.loads(Path("runs", name, "search.json").read_text())["trials"]
    assert [item["number"] for item in found] == list(range(len(found)))
    return list(found)


def test_a_search_finds_the_best_and_stops_hopeless_trials(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["search", "lr", *WORDS, "--trials", "16", "--startup", "3", "--jobs", "2"]) == 0
    found = records()
    finished = {item["number"]: item["value"] for item in found if item["state"] == "finished"}
    stopped = [item for item in found if item["state"] == "stopped early"]
    assert len(finished) + len(stopped) == 16
    assert len(stopped) >= 2
    out = capsys.readouterr().out
    best = min(finished, key=lambda number: finished[number])
    assert f"optim.lr={found[best]['params']['optim.lr']}" in out.splitlines()[-1]
    # Only what is worse than the median at its step is stopped, so never the best.
    assert all(len(item["values"]) < 4 for item in stopped)
    assert all(1000 * item["params"]["optim.lr"] > finished[best] for item in stopped)
    assert out.count("stopped early, at step") == len(stopped)
    assert all(word in Trainer.log[0] for word in ("trainer.max_steps=4", "ckpt_path=auto", "name=lr/trial-000"))


def test_pruner_none_stops_nothing() -> None:
    assert cli.main(["search", "lr", *WORDS, "--trials", "8", "--startup", "1", "--pruner", "none"]) == 0
    assert {item["state"] for item in records()} == {"finished"}


def test_an_interrupted_search_goes_on_with_the_trial_it_was_at(capsys: pytest.CaptureFixture[str]) -> None:
    Trainer.die_after = 10
    assert cli.main(["search", "lr", *WORDS, "--trials", "5"]) == cli.EXIT_INTERRUPTED
    before = records()
    assert [item["state"] for item in before] == ["finished", "finished", "running"]
    Trainer.die_after = None
    assert cli.main(["search", "lr", *WORDS, "--trials", "5"]) == 0
    after = records()
    assert [item["params"] for item in after[:3]] == [item["params"] for item in before]
    assert [item["state"] for item in after] == ["finished"] * 5
    assert after[2]["values"].keys() == {"1", "2", "3", "4"}
    assert len({item["params"]["optim.lr"] for item in after}) == 5  # no point is proposed twice
    started = len(Trainer.log)
    assert cli.main(["search", "lr", *WORDS, "--trials", "5"]) == 0  # nothing is left to do
    assert len(Trainer.log) == started
    capsys.readouterr()
    assert cli.main(["search", "lr", *WORDS, "optim.clip_norm=1", "--trials", "5"]) == 2
    assert "search.json: a search by val/ppl over" in capsys.readouterr().err


def test_a_first_trial_that_fails_ends_the_search(capsys: pytest.CaptureFixture[str]) -> None:
    Trainer.status = 2
    assert cli.main(["search", "lr", *WORDS]) == 2
    assert "trial 0 failed, status 2: what it said last" in capsys.readouterr().err
    assert [item["state"] for item in records()] == ["failed"]
    Trainer.status = 0
    assert cli.main(["search", "lr", *WORDS, "--trials", "3"]) == 0
    assert [item["state"] for item in records()] == ["failed", "finished", "finished"]


def test_a_perplexity_that_is_no_number_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    read = search.read_results
    values = iter([1.0, float("nan"), 2.0])

    def changed(path: Path) -> dict[str, object]:
        return {**read(path), "metrics": {"val/ppl": next(values)}}

    monkeypatch.setattr(search, "read_results", changed)
    assert cli.main(["search", "lr", *WORDS, "--trials", "3"]) == 0
    assert [(item["state"], item["value"]) for item in records()] == [
        ("finished", 1.0),
        ("failed", None),
        ("finished", 2.0),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lr=1,2"], "optim.lr=1,2: not a name; the first word names the search"),
        (["lr", "optim.lr=1e-3"], "nothing to search"),
        (["lr", *WORDS, "--trials", "0"], "--trials 0: must be >= 1"),
        (["lr", *WORDS, "--metric", "train/loss"], "--metric train/loss: not of a validation"),
        (["lr", *WORDS, "output_dir=x"], "output_dir=x: set for each run"),
    ],
)
def test_mistakes_are_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    if len(words) == 1:
        words = [*words, "seed=1,2"]
    assert cli.main(["search", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Trainer.log


def test_without_validations_nothing_could_be_stopped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "check", lambda _: {"trainer": {"val_every_steps": 0, "max_steps": 100}})
    assert cli.main(["search", "lr", *WORDS]) == 2
    assert "set trainer.val_every_steps=20, or give --pruner none" in capsys.readouterr().err


def test_a_broken_record_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/lr").mkdir(parents=True)
    Path("runs/lr/search.json").write_text('{"trials": [{"n": 1}]}')
    assert cli.main(["search", "lr", *WORDS]) == 2
    assert "search.json: not a record of a search" in capsys.readouterr().err


def test_without_optuna(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert cli.main(["search", "lr", *WORDS]) == 2
    assert "optuna is not installed; pip install 'sm-diffusion[sweeps]'" in capsys.readouterr().err
