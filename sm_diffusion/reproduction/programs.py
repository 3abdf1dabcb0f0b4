"""The two programs that make rows: how each names seed, start and folder, and how a run goes on."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sm_diffusion.evaluation.results import read_results
from sm_diffusion.files import read_json, sha256_of
from sm_diffusion.reproduction.experiment import Experiment
from sm_diffusion.reproduction.state import State, config_differences, state_of
from sm_diffusion.training.run_folder import RunFolder


class Program(ABC):
    """What makes a row. name: of the script and of its configuration. start: the key that names a checkpoint."""

    name: str
    start: str

    @abstractmethod
    def accepts(self, override: str) -> bool:
        """Whether an override given for all rows is one for rows of this program."""

    @abstractmethod
    def own_seed(self, row: str, folder: Path, seed: int) -> list[str]:
        """Overrides of a run with another seed than the row's."""

    @abstractmethod
    def extra(self, config: Mapping[str, Any], experiment: str) -> list[str]:
        """Overrides that follow from the configuration."""

    @abstractmethod
    def state(self, folder: Path, config: Mapping[str, Any], start: Path | None) -> tuple[State, list[str]]:
        """Where a run stands. start: the run folder it starts from."""

    @abstractmethod
    def going_on(self, state: State) -> list[str]:
        """Overrides that bring a run from this state to its end."""

    @abstractmethod
    def starts_at(self, seed: int) -> int | None:
        """The seed of the run of ANOTHER experiment that a run with this seed starts from; None: that row's own."""


def _top_key(override: str) -> str:
    return re.split(r"[.=@/]", override.lstrip("+~"), maxsplit=1)[0]


def _evaluation_keys() -> set[str]:
    """Top-level keys that only eval.py knows."""
    from sm_diffusion.config.root import EvalConfig, TrainConfig

    names = [{item.name for item in dataclasses.fields(kind)} for kind in (EvalConfig, TrainConfig)]
    return names[0] - names[1]


class Training(Program):
    """train.py."""

    name, start = "train", "init_from"

    def accepts(self, override: str) -> bool:
        return _top_key(override) not in _evaluation_keys()

    def own_seed(self, row: str, folder: Path, seed: int) -> list[str]:
        return [f"seed={seed}", f"name={folder.parent.name}/{folder.name}"]

    def extra(self, config: Mapping[str, Any], experiment: str) -> list[str]:
        logger = config.get("logger") or {}
        grouped = logger.get("wandb", "disabled") != "disabled" and logger.get("group") is None
        return [f"logger.group={quoted(experiment)}"] if grouped else []

    def state(self, folder: Path, config: Mapping[str, Any], start: Path | None) -> tuple[State, list[str]]:
        state, differences = state_of(folder, config)
        if state in (State.DONE, State.INTERRUPTED) and start is not None:
            made_from = _entry(RunFolder(folder).environment, "init_sha256")
            if _differ(made_from, _entry(RunFolder(start).results, "checkpoint_sha256")):
                return State.STALE, []
        return state, differences

    def going_on(self, state: State) -> list[str]:
        again = (State.RESTART, State.CHANGED, State.STALE)
        return ["overwrite=true"] if state in again else ["ckpt_path=last"] if state is State.INTERRUPTED else []

    def starts_at(self, seed: int) -> int | None:
        return None  # one pretrained start for all seeds


class Evaluation(Program):
    """eval.py. It replaces its results when it has new ones, and keeps what it generated: calling it again goes on."""

    name, start = "eval", "checkpoint"

    def accepts(self, override: str) -> bool:
        return _top_key(override) in {*_evaluation_keys(), "hydra"}

    def own_seed(self, row: str, folder: Path, seed: int) -> list[str]:
        return [f"seed={seed}"]

    def extra(self, config: Mapping[str, Any], experiment: str) -> list[str]:
        return []

    def state(self, folder: Path, config: Mapping[str, Any], start: Path | None) -> tuple[State, list[str]]:
        path = RunFolder(folder).results
        if not path.is_file():
            return State.MISSING, []
        results = read_results(path)
        if differences := config_differences(results.get("config") or {}, config):
            return State.CHANGED, differences
        checkpoint = Path(config["checkpoint"])
        if start is not None:
            now = _entry(RunFolder(start).results, "checkpoint_sha256")
        else:
            now = sha256_of(checkpoint) if checkpoint.is_file() else None
        marked = RunFolder(folder).stale_mark.exists()
        return (State.STALE if marked or _differ(results.get("checkpoint_sha256"), now) else State.DONE), []

    def going_on(self, state: State) -> list[str]:
        return ["overwrite=true"] if state is State.CHANGED else []

    def starts_at(self, seed: int) -> int | None:
        return seed


def _entry(path: Path, key: str) -> Any:
    return read_json(path).get(key) if path.is_file() else None


def _differ(then: Any, now: Any) -> bool:
    return then is not None and now is not None and then != now


TRAINING, EVALUATION = Training(), Evaluation()


def program_of(experiment: Experiment, row: str) -> Program:
    return EVALUATION if row in experiment.eval_rows else TRAINING


def quoted(value: str) -> str:
    """A value as Hydra's command-line grammar reads it back."""
    if re.fullmatch(r"[\w./+-]+", value):
        return value
    # Hydra takes a backslash literally unless it stands before a quote.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"
