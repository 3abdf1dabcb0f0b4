"""The training's numbers on their way to the loggers."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sm_diffusion.training.callbacks.compute_budget import ComputeBudget
from sm_diffusion.training.module import DiffusionModule

RECORDED = "recorded"  # of a checkpoint: name -> [sum, count] since the last row of the log


class TrainingLog(Callback):
    """Every so many steps: what was recorded since (`DiffusionModule.recorder`), rates, omegas and the budget.

    It must stand behind the budget in the trainer's list of callbacks.

    Args:
        budget: what the run has spent.
        log_every_steps: optimizer steps between two rows; the last step has one as well.
    """

    def __init__(self, *, budget: ComputeBudget, log_every_steps: int) -> None:
        self.budget = budget
        self.log_every_steps = log_every_steps
        self.latest: dict[str, float] = {}
        self._last_step = 0
        self._logged = (0, 0.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step
        self._logged = (self.budget.steps, self.budget.seconds)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._last_step:
            return  # still accumulating
        self._last_step = step
        if step % self.log_every_steps == 0 or step == trainer.max_steps:
            self._log(trainer, pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: DiffusionModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        """What the next row has of the steps so far. A collective."""
        found = pl_module.recorder.sums(lambda sums: _summed(trainer, sums), device=pl_module.device)
        checkpoint[RECORDED] = {name: list(pair) for name, pair in found.items()}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: DiffusionModule, checkpoint: dict[str, Any]) -> None:  # type: ignore[override]
        pl_module.recorder.restore(checkpoint.get(RECORDED, {}), first=trainer.is_global_zero)

    def _log(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:
        budget = self.budget
        recorded = pl_module.recorder.read(lambda sums: _summed(trainer, sums), device=pl_module.device)
        steps, seconds = budget.steps - self._logged[0], budget.seconds - self._logged[1]
        self._logged = (budget.steps, budget.seconds)
        rates = {group["name"]: float(group["lr"]) for group in trainer.optimizers[0].param_groups}
        self.latest = recorded | {
            "train/lr": rates["network"],
            **({"train/lr_omegas": rates["omegas"]} if "omegas" in rates else {}),
            "compute/tokens_per_second": steps * budget.tokens_per_step / max(seconds, 1e-9),
            "compute/forward_passes": float(budget.forward_passes),
            "compute/tokens": float(budget.tokens),
            "compute/flops": budget.flops,
        } | pl_module.scalar_values()
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=trainer.global_step)


def _summed(trainer: L.Trainer, sums: Tensor) -> Tensor:
    found: Tensor = trainer.strategy.reduce(sums, reduce_op="sum")
    return found
