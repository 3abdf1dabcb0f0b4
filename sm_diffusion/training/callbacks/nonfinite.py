"""The guard against a loss or weights that are NaN or infinite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sm_diffusion.training.callbacks.preemption import stop_all
from sm_diffusion.training.strategies.sharding import local_part


class NonFiniteGuard(Callback):
    """Stops at a loss that is NaN or infinite, before a checkpoint can hold the damage.

    On a GPU the loss is looked at only when the run would synchronise anyway; the step is remembered exactly.
    """

    def __init__(self, *, checkpoint_dir: Path, check_every_steps: int) -> None:
        self.checkpoint_dir = checkpoint_dir
        self.check_every_steps = check_every_steps
        self._first_bad: Tensor | None = None

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"].detach()
        step = torch.full_like(loss, trainer.global_step, dtype=torch.int64)
        bad = torch.where(torch.isfinite(loss), torch.full_like(step, -1), step)
        self._first_bad = bad if self._first_bad is None else torch.where(self._first_bad >= 0, self._first_bad, bad)
        if (batch_idx + 1) % trainer.accumulate_grad_batches:
            return  # a check is a collective: once an optimizer step at most
        if loss.device.type == "cpu" or trainer.global_step % self.check_every_steps == 0:
            self._check(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._check(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        # A finite loss can still have given an update that ruined the weights.
        finite = torch.stack([local_part(weight).detach().isfinite().all() for weight in pl_module.parameters()]).all()
        if self._first_bad is not None and not finite:
            self._first_bad = torch.full_like(self._first_bad, trainer.global_step)
        self._check(trainer)

    def _check(self, trainer: L.Trainer) -> None:
        if self._first_bad is None:
            return
        bad = int(self._first_bad)
        if trainer.world_size > 1:  # every rank must stop, whichever saw it
            bad = int(trainer.strategy.reduce(torch.tensor(bad, device=self._first_bad.device), reduce_op="max"))
        if bad < 0:
            return
        saved = sorted(self.checkpoint_dir.glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
        last = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was written yet"
        stop_all(
            f"step {bad}: the training loss or the weights are not finite; {last}; "
            "continue from it with a lower optim.lr, or set optim.clip_norm",
            rank=trainer.global_rank,
        )
