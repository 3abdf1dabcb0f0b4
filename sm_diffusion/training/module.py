"""The LightningModule that MDLM and soft-masked MDLM share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch

from sm_diffusion.diffusion.objective import Objective
from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.training import rng
from sm_diffusion.training.optim import OptimSettings, make_optimizer
from sm_diffusion.types import Batch, Draws, LossOutput


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """seed: of the training noise. evaluation_seed: of the validation noise. Rows: sizes of the stratified sets."""

    seed: int
    evaluation_seed: int
    global_batch_sequences: int
    validation_sequences: int


class DiffusionModule(L.LightningModule, ABC):
    """Implements every hook; a variant says only when feedback is spent and what is worth logging.

    EMA, metrics, progress and checkpoints are callbacks. Every random number comes from (seed, step, row).
    """

    def __init__(
        self,
        *,
        predictor: Predictor,
        objective: Objective,
        optim: OptimSettings,
        noise: NoiseSettings,
        provenance: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.objective = objective
        self.optim = optim
        self.noise = noise
        self.provenance = dict(provenance)
        # Validation spends two passes wherever there is a memory to be made; an evaluator may ask for one.
        self.validation_feedback = True

    @abstractmethod
    def feedback(self, coin: float) -> bool:
        """Whether a training step with this coin (uniform on [0, 1)) spends the extra first pass."""

    @abstractmethod
    def scalars(self) -> dict[str, torch.Tensor]:
        """Learned scalars to log, by name."""

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Batch, Draws]:
        """Draw this batch's random numbers while its row indices are still on the CPU."""
        rows, length = batch.rows_B.tolist(), batch.ids_BL.shape[1]
        if self.trainer.training:
            draws = rng.training_draws(
                rows,
                length,
                num_rows=self.noise.global_batch_sequences,
                seed=self.noise.seed,
                step=self.global_step,
            )
        else:
            draws = rng.evaluation_draws(
                rows, length, num_rows=self.noise.validation_sequences, seed=self.noise.evaluation_seed
            )
        return batch, draws

    def training_step(self, batch: tuple[Batch, Draws], batch_idx: int) -> dict[str, Any]:
        rng.seed_dropout(
            seed=self.noise.seed,
            step=self.global_step,
            micro_step=batch_idx % self.trainer.accumulate_grad_batches,
            rank=self.global_rank,
        )
        feedback = self.feedback(rng.coin(seed=self.noise.seed, step=self.global_step))
        out = self.objective(self.predictor, *batch, feedback=feedback)
        return {"loss": out.loss, "nll_sum": out.nll_sum, "num_tokens": out.num_tokens, "num_passes": out.num_passes}

    def validation_step(self, batch: tuple[Batch, Draws], batch_idx: int) -> LossOutput:  # type: ignore[override]
        return self.objective(self.predictor, *batch, feedback=self.validation_feedback)

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = make_optimizer(self.predictor, self.optim)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sm_diffusion"] = self.provenance
