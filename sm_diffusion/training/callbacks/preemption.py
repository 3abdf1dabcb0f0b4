"""A run that is asked to stop saves and leaves with a status of its own.

SIGTERM or SIGUSR1 on any rank: the ranks agree at the end of an optimizer step, save last.ckpt, and exit with
PREEMPTED. `ckpt_path=auto` continues the run when it is started again.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from sm_diffusion.training.checkpoints.writer import Writer
from sm_diffusion.types import UserError

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(SystemExit):
    """The run was asked to stop, has saved, and can be continued."""


def started_by_lightning() -> bool:
    """Whether this process was started by the first one of its machine, which takes any status but 0 for a fault."""
    schedulers = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    return os.environ.get("LOCAL_RANK", "0") != "0" and not any(name in os.environ for name in schedulers)


def stop_all(message: str, *, rank: int) -> NoReturn:
    """End a run for a reason that all ranks know: the first one says it, the others leave in silence."""
    if rank == 0:
        raise UserError(message)
    raise SystemExit(0 if started_by_lightning() else 2)


class Preemption(Callback):
    """Listens to SIGTERM and SIGUSR1 during fit. Ranks agree by an all-reduce that overlaps with the next step."""

    def __init__(self, *, checkpoint: Path, writer: Writer) -> None:
        self.checkpoint = checkpoint
        self.writer = writer
        self._asked = 0
        self._before: dict[signal.Signals, Any] = {}
        self._group: Any = None
        self._pending: tuple[Any, torch.Tensor] | None = None

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        self._asked = signum

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._asked, self._pending = 0, None
        if trainer.world_size > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")
        for number in SIGNALS:
            # In place of Lightning's own handler, which broadcasts from within the signal.
            self._before[number] = signal.signal(number, self._ask)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and self._agreed(trainer):
            self._leave(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._settle()
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, Preempted):
            self._restore()

    def _agreed(self, trainer: L.Trainer) -> bool:
        """Whether any rank had been asked to stop when the step before this one ended."""
        if trainer.world_size == 1:
            return self._asked > 0
        asked = self._settle()
        flag = torch.tensor(self._asked)
        self._pending = (dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True), flag)
        return asked > 0

    def _settle(self) -> int:
        if self._pending is None:
            return 0
        work, flag = self._pending
        self._pending = None
        work.wait()
        return int(flag)

    def _leave(self, trainer: L.Trainer) -> None:
        for number in SIGNALS:  # a second signal must not interrupt the save
            signal.signal(number, signal.SIG_IGN)
        self._settle()
        trainer.save_checkpoint(self.checkpoint)
        self.writer.wait()
        if trainer.is_global_zero:
            text = f"stopped by a signal at step {trainer.global_step:,}; saved {self.checkpoint}"
            print(f"{text}; continue with ckpt_path=auto (exit status {PREEMPTED})", file=sys.stderr, flush=True)
        raise Preempted(0 if started_by_lightning() else PREEMPTED)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
