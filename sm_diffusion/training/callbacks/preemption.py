"""A run that is asked to stop saves and leaves with a status of its own.

SIGTERM, SIGUSR1 or SIGINT (Ctrl-C) on any rank: the ranks agree at the end of an optimizer step, save last.ckpt, and
exit with PREEMPTED, after Ctrl-C with 130. `ckpt_path=auto` continues the run when it is started again. A second Ctrl-C
ends the program at once: the checkpoint before is whole.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback

from sm_diffusion.interrupts import INTERRUPTED, end_at_once, is_ignored, started_by_lightning
from sm_diffusion.training.checkpoints.writer import Writer
from sm_diffusion.types import UserError

PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: try again later
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Preempted(SystemExit):
    """The run was asked to stop, has saved, and can be continued."""


def stop_all(message: str, *, rank: int) -> NoReturn:
    """End a run for a reason that all ranks know: the first one says it, the others leave in silence."""
    if rank == 0:
        raise UserError(message)
    raise SystemExit(0 if started_by_lightning() else 2)


class Preemption(Callback):
    """Listens to SIGTERM, SIGUSR1 and SIGINT during fit. Ranks agree by an all-reduce that overlaps with the next step.

    In the trainer's list it stands behind the callback that saves at the end.
    """

    def __init__(self, *, checkpoint: Path, writer: Writer) -> None:
        self.checkpoint = checkpoint
        self.writer = writer
        self._asked = 0
        self._before: dict[signal.Signals, Any] = {}
        self._group: Any = None
        self._pending: tuple[Any, torch.Tensor] | None = None

    def _ask(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGINT == self._asked:
            end_at_once()
        self._asked = max(self._asked, signum)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._asked, self._pending = 0, None
        if trainer.world_size > 1 and self._group is None:
            self._group = dist.new_group(backend="gloo")
        for number in SIGNALS:
            if number == signal.SIGINT and is_ignored():
                continue
            # In place of Lightning's own handler, which broadcasts from within the signal.
            self._before[number] = signal.signal(number, self._ask)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0 and (asked := self._agreed(trainer)):
            self._leave(trainer, asked)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The last checkpoint is written: who was asked meanwhile leaves before the last validation."""
        self._settle()
        asked = torch.tensor(self._asked)
        if trainer.world_size > 1:
            dist.all_reduce(asked, op=dist.ReduceOp.MAX, group=self._group)
        self._restore()
        if asked:
            self._end(trainer, int(asked))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, Preempted):
            self._restore()

    def _agreed(self, trainer: L.Trainer) -> int:
        """The signal that had asked any rank to stop when the step before this one ended; 0: none."""
        if trainer.world_size == 1:
            return self._asked
        asked = self._settle()
        flag = torch.tensor(self._asked)
        self._pending = (dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True), flag)
        return asked

    def _settle(self) -> int:
        if self._pending is None:
            return 0
        work, flag = self._pending
        self._pending = None
        work.wait()
        return int(flag)

    def _leave(self, trainer: L.Trainer, asked: int) -> NoReturn:
        for number in self._before:  # a second signal must not interrupt the save, but for a second Ctrl-C
            signal.signal(number, end_at_once if number == signal.SIGINT else signal.SIG_IGN)
        self._settle()
        trainer.save_checkpoint(self.checkpoint)
        self.writer.wait()
        self._end(trainer, asked)

    def _end(self, trainer: L.Trainer, asked: int) -> NoReturn:
        status = INTERRUPTED if asked == signal.SIGINT else PREEMPTED
        if trainer.is_global_zero:
            text = f"stopped by a signal at step {trainer.global_step:,}; saved {self.checkpoint}"
            print(f"{text}; continue with ckpt_path=auto (exit status {status})", file=sys.stderr, flush=True)
        raise Preempted(0 if started_by_lightning() else status)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
