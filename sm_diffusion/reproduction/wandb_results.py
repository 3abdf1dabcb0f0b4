"""Results of an experiment from Weights & Biases: runs named `<experiment>/<row>` or `<experiment>/<row>-seed<k>`.

`train.py logger=wandb` names them so and leaves in the summary what results.json holds (`app/publish.py`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from sm_diffusion.app.publish import MARK
from sm_diffusion.reproduction.collected import SECTIONS, Found
from sm_diffusion.reproduction.experiment import Experiment
from sm_diffusion.types import UserError

API_TIMEOUT_SECONDS = 30
_WORDS = {"nan": math.nan, "infinity": math.inf, "inf": math.inf, "-infinity": -math.inf, "-inf": -math.inf}
_NO_METRICS = (MARK, "train", "trainer", "omega")  # what is logged by the step
_UNFINISHED = ("running", "pending", "preempting", "preempted", "crashed", "failed", "killed")


def find_runs(experiment: Experiment, path: str) -> tuple[list[Found], list[str]]:
    """(runs of the experiment's rows, remarks). path: entity/project.

    Where several runs bear one name, the newest finished one counts, and a remark says so.
    Raises UserError for a wrong path, and where W&B is not installed, not logged in, or cannot be reached.
    """
    if not re.fullmatch(r"[^/\s]+/[^/\s]+", path):
        raise UserError(f"wandb:{path}: give wandb:entity/project")
    by_name: dict[str, list[Any]] = {}
    for run in _runs(path, experiment.name):
        if _row_of(experiment, run.name) is not None:
            by_name.setdefault(run.name, []).append(run)
    found, remarks = [], []
    for name, runs in by_name.items():
        finished = [run for run in runs if run.state not in _UNFINISHED]
        chosen = (finished or runs)[-1]  # in the order of creation
        if len(runs) > 1:
            remarks.append(f"warning: {path}: {len(runs)} runs are named {name}; the newest finished one is shown")
        row = _row_of(experiment, name)
        assert row is not None
        results = _results(chosen) if finished else None
        found.append(Found(row, f"wandb:{path}/{chosen.id} ({name}, {chosen.state})", results))
    if not found:
        remarks.append(f"wandb:{path}: holds no run named {experiment.name}/<row>")
    return found, remarks


def _runs(path: str, experiment: str) -> list[Any]:
    try:
        import wandb
    except ImportError:
        raise UserError("wandb is not installed; install it with: pip install wandb, or give a folder") from None
    errors: tuple[type[Exception], ...] = (wandb.errors.CommError, wandb.errors.Error, OSError, ValueError)
    try:
        api = wandb.Api(timeout=API_TIMEOUT_SECONDS)
        pattern = f"^{re.escape(experiment)}/"
        return list(api.runs(path, filters={"display_name": {"$regex": pattern}}, order="+created_at", lazy=False))
    except wandb.errors.UsageError as error:
        raise UserError(f"wandb:{path}: {_line(error)}; log in with: wandb login, or set WANDB_API_KEY") from None
    except errors as error:
        raise UserError(f"wandb:{path}: cannot be read ({_line(error)}); check name, login and network") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__


def _row_of(experiment: Experiment, name: str | None) -> str | None:
    found = re.fullmatch(re.escape(experiment.name) + r"/(.+?)(-seed\d+)?", name or "")
    return found[1] if found and found[1] in experiment.rows else None


def _results(run: Any) -> dict[str, Any]:
    """A run's summary in the shape of results.json."""
    summary = dict(run.summary)
    config = {key: value for key, value in dict(run.config).items() if not key.startswith("_")}
    sections: dict[str, dict[str, Any]] = {"metrics": {}, **{section: {} for section in SECTIONS}}
    for key, value in summary.items():
        prefix, _, rest = key.partition("/")
        number = _number(value)
        if number is None or not rest or prefix in _NO_METRICS:
            continue
        section, name = (prefix, rest) if prefix in SECTIONS else ("metrics", key)
        sections[section][name] = number
    return {
        "name": run.name,
        **sections,
        "omegas": sections["omegas"] or None,
        "config": config,
        "seed": summary.get(f"{MARK}/seed", config.get("seed")),
        "git_commit": summary.get(f"{MARK}/git_commit", run.commit),
        "git_dirty": summary.get(f"{MARK}/git_dirty"),
        "machine": _nested(summary.get(f"{MARK}/machine")),
    }


def _number(value: Any) -> float | None:
    if isinstance(value, str):
        return _WORDS.get(value.lower())
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    return None


def _nested(value: Any) -> dict[str, Any] | None:
    return dict(value) if isinstance(value, Mapping) else None
