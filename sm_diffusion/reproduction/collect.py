"""The results of an experiment, row by row: from run folders or from Weights & Biases, apart by code version."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sm_diffusion.evaluation.results import read_results
from sm_diffusion.reproduction.code_version import distinct_versions, version_of
from sm_diffusion.reproduction.collected import Collected, Found, Row
from sm_diffusion.reproduction.experiment import RUNS, Experiment, seed_folders
from sm_diffusion.training.run_folder import RunFolder
from sm_diffusion.types import UserError

WANDB_PREFIX = "wandb:"
# A run's own settings, which may differ between the seeds of one row.
PER_SEED_SETTINGS = ("name", "output_dir", "seed", "init_from", "ckpt_path", "checkpoint", "overwrite")
# Parts of a metric's name that say larger is better; without one of them smaller is.
_HIGHER = ("pass@", "acc", "exact_match", "mauve", "tokens_per_second", "distinct", "score", "solved")


def collect(experiment: Experiment, where: str | Path = RUNS) -> Collected:
    """where: the folder of all runs, or `wandb:entity/project`."""
    if str(where).startswith(WANDB_PREFIX):
        from sm_diffusion.reproduction.wandb_results import find_runs

        found, remarks = find_runs(experiment, str(where).removeprefix(WANDB_PREFIX))
    else:
        found, remarks = _folders(experiment, Path(where)), []
    return _by_version(experiment, found, remarks)


def check_source(where: str) -> str:
    """`where` as the user gave it; UserError for a folder that is not there."""
    if where != str(RUNS) and not where.startswith(WANDB_PREFIX) and not Path(where).is_dir():
        raise UserError(f"{where}: no such folder; give the folder of all runs, or wandb:entity/project")
    return where


def _folders(experiment: Experiment, runs: Path) -> list[Found]:
    found = []
    for name in experiment.rows:
        for folder in seed_folders(experiment.name, name, runs=runs):
            run = RunFolder(folder)
            results = read_results(run.results) if run.results.is_file() else None
            found.append(Found(name, str(folder), results, stale=run.stale_mark.exists()))
    return found


def _by_version(experiment: Experiment, found: Sequence[Found], remarks: Sequence[str]) -> Collected:
    labels = distinct_versions(item.results for item in found if item.results is not None)
    several = len(set(labels.values())) > 1
    remarks = list(remarks)
    rows = []
    for name in experiment.rows:
        groups: dict[str, dict[int, Found]] = {}
        for item in found:
            if item.row != name or item.results is None:
                continue
            group = groups.setdefault(labels[version_of(item.results)], {})
            seed = _seed(item)
            if seed in group:
                remarks.append(f"warning: {item.where}: a second run of {name}, seed {seed}; the first one is shown")
            group.setdefault(seed, item)
        waiting = [item.where for item in found if item.row == name and item.results is None]
        for index, (version, group) in enumerate(groups.items() or [("", {})]):
            runs = {seed: item.results for seed, item in group.items() if item.results is not None}
            places = {seed: item.where for seed, item in group.items()}
            rows.append(Row(name, runs, waiting if index == 0 else (), version if several else "", places))
    remarks += [
        f"warning: {item.where}: what it starts from was trained again since; smd run {experiment.name} repeats it"
        for item in found
        if item.stale
    ]
    return Collected(rows, remarks)


def _seed(item: Found) -> int:
    assert item.results is not None
    try:
        return int(item.results["seed"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{item.where}: its results name no seed; delete results.json to have it made again") from None


def is_higher_better(metric: str) -> bool:
    """Whether a larger value of a metric is the better one, judged by its name."""
    return any(part in metric for part in _HIGHER)


# --------------------------------------------------------------------------------------------------------- warnings


def warnings(experiment: Experiment, collected: Collected, keys: Sequence[str]) -> list[str]:
    """What makes the numbers less comparable than they look, what is NaN, what is missing. keys: the shown metrics."""
    lines = list(collected.remarks)
    versions = collected.versions
    if len(versions) > 1:
        lines.append(
            f"warning: these results come from {len(versions)} code versions ({', '.join(versions)}); they are shown "
            "apart, not averaged or compared with one another"
        )
    results = [run for row in collected.rows for run in row.runs.values()]
    if any(run.get("git_dirty") for run in results):
        lines.append("warning: some results were made from sources with changes that no commit holds")
    for row in collected.rows:
        settings = [_shared_settings(run.get("config") or {}) for run in row.runs.values()]
        if any(other != settings[0] for other in settings[1:]):
            lines.append(f"warning: {row.label}: its seeds were run with different settings; their mean means little")
        lines += [f"warning: {row.label}: {text}" for text in _bad_values(row, keys)]
        lines += [f"unfinished: {where}; continue with: smd run {experiment.name}" for where in row.unfinished]
    return lines + _missing_seeds(collected)


def _bad_values(row: Row, keys: Sequence[str]) -> list[str]:
    lines = []
    for key in keys:
        values = row.values(key)
        bad = [str(seed) for seed, value in values.items() if not math.isfinite(value)]
        if bad:
            kind = "NaN" if any(math.isnan(value) for value in values.values()) else "infinite"
            lines.append(f"{key} is {kind} with seed {', '.join(bad)}, and so is its mean")
        absent = [str(seed) for seed in row.runs if seed not in values]
        if values and absent:
            lines.append(f"{key} is missing with seed {', '.join(absent)}")
    return lines


def _missing_seeds(collected: Collected) -> list[str]:
    """Rows that were run with fewer seeds than others of their version."""
    lines = []
    for version in collected.versions:
        rows = [row for row in collected.rows if row.version == version and row.runs]
        seeds = {seed for row in rows for seed in row.runs}
        for row in rows:
            if absent := sorted(seeds - set(row.runs)):
                lines.append(f"missing: {row.label}: seed {', '.join(map(str, absent))}, which other rows have")
    return lines


def _shared_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in PER_SEED_SETTINGS}
