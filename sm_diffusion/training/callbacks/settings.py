"""What happens beside the steps of a run: settings of averaging, checkpoints, and any other callback by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from sm_diffusion.registry import extras, register

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What callbacks and loggers of a plug-in are built with.

    name, folder: of the run.   run_id: its own, kept when it is continued.
    config: its whole configuration, as config.yaml holds it.
    """

    name: str
    folder: Path
    run_id: str
    config: Mapping[str, Any]


class CallbackSettings(Protocol):
    """A component of the group `callback`: a dataclass that builds a Lightning callback."""

    def build(self, run: RunContext) -> Callback: ...


class LogSettings(Protocol):
    """A component of the group `log`: a dataclass that builds a Lightning logger."""

    def build(self, run: RunContext) -> Logger: ...


@dataclass(frozen=True, kw_only=True)
class EMASettings:
    """The average of the weights."""

    enabled: bool = True
    decay: float = 0.9999  # per step, in [0, 1); ramps up as (1 + n) / (10 + n)
    scope: Literal["network", "all"] = "network"  # network (as published) | all (omegas too)


@dataclass(frozen=True, kw_only=True)
class CheckpointSettings:
    """What of a run is kept on disk."""

    every_steps: int = 1000
    keep_every: bool = False  # keep each periodic checkpoint, not only the newest
    keep_best: int = 1  # by validation NLL
    layout: Literal["consolidated", "sharded"] = "consolidated"  # one file | fsdp: a folder, each rank writes its part
    async_save: bool = False  # write while training goes on; memory for one more copy of the checkpoint
    verify: bool = True  # compare a checkpoint with its checksum before a run continues from it


@register("callbacks", "callbacks")
@dataclass(frozen=True, kw_only=True)
class CallbacksSettings:
    """Averaging, checkpoints, progress and plots; others by name: +callbacks.extra.NAME={...}"""

    ema: EMASettings = field(default_factory=EMASettings)
    checkpoint: CheckpointSettings = field(default_factory=CheckpointSettings)
    progress_seconds: float = 10.0  # between progress lines where the output is not a terminal
    plots: bool = True  # loss and lambda(entropy) as PNG at the end
    extra: dict[str, Any] = extras("callback")  # name of a callback -> its settings

    def problems(self) -> Iterator[str]:
        if not 0 <= self.ema.decay <= 0.9999999:
            yield f"callbacks.ema.decay={self.ema.decay}: must lie in [0, 1)"
        if not self.checkpoint.every_steps > 0:
            yield f"callbacks.checkpoint.every_steps={self.checkpoint.every_steps}: must be positive"
        if self.checkpoint.keep_best < 0:
            yield f"callbacks.checkpoint.keep_best={self.checkpoint.keep_best}: must be >= 0"
