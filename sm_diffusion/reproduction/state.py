"""Where a run folder stands: judged by its files and by the configuration the run would have today."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

from sm_diffusion.evaluation.results import read_results
from sm_diffusion.training.run_folder import RunFolder
from sm_diffusion.types import UserError

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
    "batch_sequences",
    "accelerator",
    "devices",
)


class State(Enum):
    """Of a row's run folder. CHANGED: it holds a run of another configuration. STALE: of another start."""

    DONE = "done"
    MISSING = "to run"
    INTERRUPTED = "to continue"
    RESTART = "to start again (interrupted before its first checkpoint)"
    CHANGED = "made with other settings"
    STALE = "to run again (what it starts from was trained again)"


def state_of(folder: Path, config: Mapping[str, Any]) -> tuple[State, list[str]]:
    """Where a run stands, judged by its files and by the configuration it would have today."""
    earlier = _earlier_config(folder)
    if earlier is not None and (differences := config_differences(earlier, config)):
        return State.CHANGED, differences
    run = RunFolder(folder)
    if run.stale_mark.exists():
        return State.STALE, []
    if run.results.is_file():
        return State.DONE, []
    if run.last.exists():
        return State.INTERRUPTED, []
    return (State.RESTART if folder.is_dir() and any(folder.iterdir()) else State.MISSING), []


def _earlier_config(folder: Path) -> Mapping[str, Any] | None:
    run = RunFolder(folder)
    if run.results.is_file():
        config = read_results(run.results).get("config")
        return config if isinstance(config, dict) else None
    path = run.config
    if not path.is_file():
        return None
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError:
        raise UserError(f"{path}: not a YAML file; delete {folder} to run it again") from None
    return config if isinstance(config, dict) else None


def config_differences(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """`key: old -> new` of every setting that can change a result. A setting that the earlier run's version did not
    know, at its default now, changes none."""
    old, new = _flat(earlier), _flat(now)
    changed = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key) and not _irrelevant(key)]
    unknown = [key for key in changed if key not in old]
    defaults = schema_defaults() if unknown else {}
    same = {key for key in unknown if new[key] in defaults.get(key, ())}
    return [f"{key}: {old.get(key, 'absent')} -> {new.get(key, 'absent')}" for key in changed if key not in same]


@functools.cache
def schema_defaults() -> dict[str, list[Any]]:
    """Every key of train.py and eval.py -> its defaults, of each component that may stand there."""
    from sm_diffusion.config.nodes import defaults
    from sm_diffusion.config.root import EvalConfig, TrainConfig

    found: dict[str, list[Any]] = {}
    for kind in (TrainConfig, EvalConfig):
        for key, value in defaults(kind):
            found.setdefault(key, []).append(value)
    return found


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
