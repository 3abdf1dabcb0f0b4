"""What results.json says, in the summary of a W&B run as well, so that a table can be made from either."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger

MARK = "smd"  # prefix of what no metric is: seed, code version, machine


def publish(loggers: Iterable[Logger], results: Mapping[str, Any]) -> None:
    """Add metrics under their own names, `compute/...`, `omegas/...` and `smd/...` to each W&B run's summary."""
    from lightning.pytorch.loggers import WandbLogger  # here, so that tools which need MARK alone start at once

    summary = summary_of(results)
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.summary.update(summary)
            logger.experiment.config.update(results["config"], allow_val_change=True)


def summary_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """Flat names and values."""
    return {
        **results["metrics"],
        **{f"compute/{name}": value for name, value in (results.get("compute") or {}).items()},
        **{f"omegas/{name}": value for name, value in (results.get("omegas") or {}).items()},
        **{f"{MARK}/{key}": results.get(key) for key in ("seed", "git_commit", "git_dirty", "weights", "machine")},
    }
