"""`smd run`: run what an experiment is missing, in the order its rows depend on one another. A second call does
nothing; an interrupted one is continued from the last checkpoint."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from sm_diffusion.evaluation.results import read_results
from sm_diffusion.tools import ROOT, RUNS, Experiment, load_experiment, run_folder
from sm_diffusion.types import UserError

HELP = "train and evaluate the rows of an experiment that are missing, then print its table"
EXAMPLES = """
smd run quickstart
smd run quickstart --dry-run
smd run quickstart --only pretrain
smd run quickstart --seeds 1,2,3
smd run quickstart --runs /tmp/smoke trainer.max_steps=20
"""
# What changes no result: a run that differs in these only is the same run.
IRRELEVANT = (
    "output_dir",
    "ckpt_path",
    "overwrite",
    "logger",
    "callbacks.progress_seconds",
    "callbacks.plots",
    "callbacks.checkpoint",
    "data.cache_dir",
    "data.num_workers",
    "strategy.timeout_seconds",
    "trainer.log_every_steps",
    "trainer.threads",
)
# Left in a run folder whose starting checkpoint was trained again.
STALE_MARK = "stale"
Compose = Callable[[Sequence[str]], Mapping[str, Any]]


class State(Enum):
    """Of a row's run folder. CHANGED: it holds a run of another configuration. STALE: of another start."""

    DONE = "done"
    MISSING = "to run"
    INTERRUPTED = "to continue"
    RESTART = "to start again (interrupted before its first checkpoint)"
    CHANGED = "made with other settings"
    STALE = "to run again (what it starts from was trained again)"


@dataclass(frozen=True)
class RowRun:
    """One training run. overrides: what train.py is given. needs: the run folder it starts from, or None.
    differences: `key: old -> new`, when the folder holds a run of another configuration."""

    row: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    needs: Path | None
    state: State
    differences: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """The command line that brings it to its end from where it stands."""
        extra = {
            State.INTERRUPTED: ["ckpt_path=last"],
            State.RESTART: ["overwrite=true"],
            State.CHANGED: ["overwrite=true"],
            State.STALE: ["overwrite=true"],
        }
        return [sys.executable, str(ROOT / "train.py"), *self.overrides, *extra.get(self.state, [])]


# ------------------------------------------------------------------------------------------------------------- plan


def plan_runs(
    experiment: Experiment,
    *,
    seeds: Sequence[int] = (),
    extra: Sequence[str] = (),
    runs: Path = RUNS,
    compose: Compose | None = None,
) -> list[RowRun]:
    """Every run of the experiment and its state, each after the one it starts from.

    seeds: empty for each row's own. extra: overrides for all rows. compose: overrides -> configuration.
    """
    compose = compose or _compose_train
    planned = []
    for row in experiment.rows:
        base = [f"experiments={experiment.name}/{row}", *extra]
        own = compose(base)
        for seed in dict.fromkeys(seeds) or [int(own["seed"])]:
            suffix = None if seed == own["seed"] else seed
            planned.append(_plan_run(experiment, row, own=own, base=base, seed=suffix, runs=runs, compose=compose))
    return _ordered(planned)


def _compose_train(overrides: Sequence[str]) -> Mapping[str, Any]:
    from sm_diffusion.tools.config_cmd import composed

    return composed("train", overrides)


def _plan_run(
    experiment: Experiment,
    row: str,
    *,
    own: Mapping[str, Any],
    base: Sequence[str],
    seed: int | None,
    runs: Path,
    compose: Compose,
) -> RowRun:
    """seed: None for the row's own, whose command line is then the shortest."""
    folder = run_folder(experiment.name, row, seed=seed, runs=runs)
    overrides = list(base)
    if seed is not None:
        overrides += [f"seed={seed}", f"name={experiment.name}/{folder.name}"]
    if Path(own["output_dir"]) != folder:
        overrides.append(f"output_dir={quoted(str(folder))}")
    start = _start(experiment, own["init_from"], seed=seed, runs=runs)
    if start is not None and str(start[1]) != own["init_from"]:
        overrides.append(f"init_from={quoted(str(start[1]))}")
    config = compose(overrides) if len(overrides) > len(base) else own
    state, differences = state_of(folder, config)
    seed_used = int(config["seed"])
    return RowRun(row, seed_used, folder, tuple(overrides), start[0] if start else None, state, tuple(differences))


def _start(experiment: Experiment, init_from: str | None, *, seed: int | None, runs: Path) -> tuple[Path, Path] | None:
    """(run folder, checkpoint) that a row starts from when that is another row of the experiment, at its seed."""
    prefix = (*RUNS.parts, experiment.name)
    parts = Path(init_from).parts if init_from is not None else ()
    if parts[: len(prefix)] != prefix or len(parts) <= len(prefix) or parts[len(prefix)] not in experiment.rows:
        return None
    folder = run_folder(experiment.name, parts[len(prefix)], seed=seed, runs=runs)
    return folder, folder.joinpath(*parts[len(prefix) + 1 :])


def quoted(value: str) -> str:
    """A value as Hydra's command-line grammar reads it back."""
    if re.fullmatch(r"[\w./+-]+", value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _ordered(planned: Sequence[RowRun]) -> list[RowRun]:
    """Each run after the one it starts from, otherwise in the given order."""
    waiting, ordered = list(planned), []
    placed: set[Path] = set()
    inside = {item.folder for item in planned}
    while waiting:
        ready = next((item for item in waiting if item.needs is None or item.needs in placed | ({item.needs} - inside)), None)
        if ready is None:
            raise UserError(f"rows start from one another in a circle: {', '.join(item.row for item in waiting)}")
        waiting.remove(ready)
        ordered.append(ready)
        placed.add(ready.folder)
    return ordered


# ------------------------------------------------------------------------------------------------------------ state


def state_of(folder: Path, config: Mapping[str, Any]) -> tuple[State, list[str]]:
    """Where a run stands, judged by its files and by the configuration it would have today."""
    earlier = _earlier_config(folder)
    if earlier is not None and (differences := config_differences(earlier, config)):
        return State.CHANGED, differences
    if (folder / STALE_MARK).exists():
        return State.STALE, []
    if (folder / "results.json").is_file():
        return State.DONE, []
    if (folder / "checkpoints" / "last.ckpt").exists():
        return State.INTERRUPTED, []
    return (State.RESTART if folder.is_dir() and any(folder.iterdir()) else State.MISSING), []


def _earlier_config(folder: Path) -> Mapping[str, Any] | None:
    if (folder / "results.json").is_file():
        config = read_results(folder / "results.json").get("config")
        return config if isinstance(config, dict) else None
    path = folder / "config.yaml"
    if not path.is_file():
        return None
    try:
        config = yaml.safe_load(path.read_text())
    except yaml.YAMLError:
        raise UserError(f"{path}: not a YAML file; delete {folder} to run it again") from None
    return config if isinstance(config, dict) else None


def config_differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key: old -> new` of every setting that can change a result."""
    old, new = _flat(earlier), _flat(now)
    return [
        f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not _irrelevant(key)
    ]


def _irrelevant(key: str) -> bool:
    return any(key == setting or key.startswith(f"{setting}.") for setting in IRRELEVANT)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return flat


# -------------------------------------------------------------------------------------------------------------- run


def selected(planned: Sequence[RowRun], only: Sequence[str], experiment: Experiment) -> list[RowRun]:
    """The runs of the named rows, all of them without names."""
    if unknown := [row for row in only if row not in experiment.rows]:
        raise UserError(f"--only {unknown[0]}: no such row; choose from {', '.join(experiment.rows)}")
    return [item for item in planned if not only or item.row in only]


def execute(chosen: Sequence[RowRun], planned: Sequence[RowRun], *, experiment: Experiment, overwrite: bool) -> None:
    """Run what is not done, one after another; UserError at the first that cannot or does not end well."""
    if not overwrite and (changed := [item for item in chosen if item.state is State.CHANGED]):
        first = changed[0]
        raise UserError(
            f"{first.folder}: holds a run with other settings ({'; '.join(first.differences[:4])}); "
            "keep it by choosing another folder with --runs, or replace it with --overwrite"
        )
    again: set[Path] = set()
    for item in chosen:
        if item.needs in again and item.state in (State.DONE, State.INTERRUPTED):
            item = dataclasses.replace(item, state=State.STALE)
        if item.state is State.DONE:
            print(f"{item.folder}: done", flush=True)
            continue
        if item.needs is not None and not (item.needs / "results.json").is_file():
            raise UserError(f"{item.folder}: starts from {item.needs}, which is not finished; run that row first")
        if item.state in (State.CHANGED, State.STALE):
            again.add(item.folder)
            _mark_stale(item, planned)
        _run_one(item, experiment)


def _mark_stale(item: RowRun, planned: Sequence[RowRun]) -> None:
    """Leave a mark in every run that starts from this one, so that an interruption forgets none of them."""
    for other in planned:
        if other.needs == item.folder and other.folder.is_dir():
            (other.folder / STALE_MARK).touch()
            _mark_stale(other, planned)


def _run_one(item: RowRun, experiment: Experiment) -> None:
    command = item.command()
    print(f"{item.folder}: {item.state.value}\n$ {shlex.join(command)}", flush=True)
    status = call(command)
    again = f'then "smd run {experiment.name}" again: finished rows are kept, this one continues from its last checkpoint'
    if status != 0:
        raise UserError(f"row {item.row} (seed {item.seed}) failed with status {status}; mend what it says above, {again}")
    if not (item.folder / "results.json").is_file():
        raise UserError(f"row {item.row} (seed {item.seed}) ended without {item.folder / 'results.json'}; {again}")


def call(command: Sequence[str]) -> int:
    """Run a program on this terminal. An interruption or SIGTERM reaches it too, and is waited for."""
    with subprocess.Popen(command) as process:
        previous = signal.signal(signal.SIGTERM, _terminated)
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=60)
            process.kill()
            raise
        finally:
            signal.signal(signal.SIGTERM, previous)


def _terminated(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)
