"""Where the numbers of a run go: CSV files, Weights & Biases, and any other logger by name."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sm_diffusion.registry import extras, register
from sm_diffusion.training.callbacks.settings import RunContext
from sm_diffusion.training.run_folder import RunFolder

if TYPE_CHECKING:
    from lightning.pytorch.loggers import Logger


@register("logger", "logger")
@dataclass(frozen=True, kw_only=True)
class LoggerSettings:
    """CSV and Weights & Biases; others by name: +logger.extra.NAME={...}"""

    csv: bool = True
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "sm_diffusion"
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    extra: dict[str, Any] = extras("log")  # name of a logger -> its settings

    def problems(self) -> Iterator[str]:
        if self.wandb == "online" and not (os.environ.get("WANDB_API_KEY") or (Path.home() / ".netrc").exists()):
            yield (
                "logger.wandb=online: not logged in; run `wandb login`, set WANDB_API_KEY, or use logger=wandb_offline"
            )

    def build(self, run: RunContext) -> list[Logger]:
        from lightning.pytorch.loggers import CSVLogger, WandbLogger

        loggers: list[Logger] = []
        if self.csv:
            # A resumed run writes a new version_<k>: what earlier ones logged is kept.
            loggers.append(CSVLogger(run.folder, name=RunFolder(run.folder).metrics.name, flush_logs_every_n_steps=1))
        if self.wandb != "disabled":
            loggers.append(
                WandbLogger(
                    name=run.name,
                    save_dir=str(run.folder),
                    project=self.project,
                    entity=self.entity,
                    group=self.group,
                    tags=list(self.tags),
                    offline=self.wandb == "offline",
                    id=run.run_id or None,
                    resume="allow",
                )
            )
        return [*loggers, *(settings.build(run) for settings in self.extra.values())]


def close(run_id: str, *, failed: bool) -> None:
    """End this run at Weights & Biases, if it has one there: the next run of this process would be taken for it."""
    wandb: Any = sys.modules.get("wandb")
    if wandb is not None and wandb.run is not None and wandb.run.id == run_id:
        wandb.finish(exit_code=int(failed))
