"""The LightningModule that MDLM and soft-masked MDLM share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from torch.optim.lr_scheduler import LambdaLR

from sm_diffusion.diffusion.metrics import Recorder, recording
from sm_diffusion.diffusion.objective import Objective
from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.training import rng
from sm_diffusion.training.optim import OptimSettings
from sm_diffusion.training.strategies.base import TrainingStrategy, training_strategy
from sm_diffusion.types import Batch, Draws, LossOutput, UserError


@dataclass(frozen=True, kw_only=True)
class NoiseSettings:
    """seed: of the training noise. evaluation_seed: of the validation noise. Rows: sizes of the stratified sets.

    row_width: tokens of the longest row where rows differ in length (`rng.uniforms`); None: all are equally long.
    coin_each_micro_batch: every micro-batch of a step decides by itself whether it spends the first pass, as the
        authors' trainers do (IBM language/algo.py:204, coding/train/components/trainer.py:46-60), but equally on all
        ranks; else the step decides. With 8 micro-batches and p_sm = .5 the omegas then get a gradient in 99.6 % of the
        steps instead of 50 %.
    """

    seed: int
    evaluation_seed: int
    global_batch_sequences: int
    validation_sequences: int
    row_width: int | None = None
    coin_each_micro_batch: bool = False


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
        num_steps: int,
        noise: NoiseSettings,
        provenance: Mapping[str, Any],
    ) -> None:
        super().__init__()
        self.predictor = predictor
        self.objective = objective
        self.optim = optim
        self.num_steps = num_steps
        self.noise = noise
        self.provenance = dict(provenance)
        self.recorder = Recorder()
        # Validation spends two passes wherever there is a memory to be made; an evaluator may ask for one.
        self.validation_feedback = True

    @abstractmethod
    def feedback(self, coin: float) -> bool:
        """Whether a training step with this coin (uniform on [0, 1)) spends the extra first pass."""

    @abstractmethod
    def scalars(self) -> dict[str, torch.Tensor]:
        """Learned scalars to log, by name."""

    def scalar_values(self) -> dict[str, float]:
        """`scalars` as numbers. All ranks must call it: sharded omegas are gathered."""
        self.spread.release_gathered()
        omegas = [weight for name, weight in self.predictor.named_parameters() if name.startswith("soft_mask.")]
        with self.spread.gathered(omegas):
            return {name: float(self.spread.whole(value.detach())) for name, value in self.scalars().items()}

    @property
    def spread(self) -> TrainingStrategy:
        """How this module's steps are spread over processes."""
        return training_strategy(self.trainer.strategy)

    def configure_model(self) -> None:
        self.spread.adopt(self)

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
                row_width=self.noise.row_width,
            )
        else:
            draws = rng.evaluation_draws(
                rows,
                length,
                num_rows=self.noise.validation_sequences,
                seed=self.noise.evaluation_seed,
                row_width=self.noise.row_width,
            )
        return batch, draws

    def training_step(self, batch: tuple[Batch, Draws], batch_idx: int) -> dict[str, Any]:
        micro_step = batch_idx % self.trainer.accumulate_grad_batches
        rng.seed_dropout(
            seed=self.noise.seed, step=self.global_step, micro_step=micro_step, rank=self.global_rank
        )
        feedback = self.spends_feedback(micro_step)
        with recording(self.recorder):
            out = self.objective(self.predictor, *batch, feedback=feedback)
        self.recorder.record_sum("train/loss", out.nll_sum, out.num_tokens)
        return {"loss": self.spread.complete_loss(out.loss, feedback=feedback), "num_passes": out.num_passes}

    def spends_feedback(self, micro_step: int) -> bool:
        """Whether this micro-batch of the current optimizer step spends the first pass; equal on all ranks."""
        decides = micro_step if self.noise.coin_each_micro_batch else 0
        return self.feedback(rng.coin(seed=self.noise.seed, step=self.global_step, micro_step=decides))

    def step_spends_feedback(self) -> bool:
        """Whether any micro-batch of the current optimizer step does, so that the omegas have a gradient."""
        return any(map(self.spends_feedback, range(self.trainer.accumulate_grad_batches)))

    def validation_step(self, batch: tuple[Batch, Draws], batch_idx: int) -> LossOutput:  # type: ignore[override]
        return self.objective(self.predictor, *batch, feedback=self.validation_feedback)

    def on_train_start(self) -> None:
        """A resumed run keeps its optimiser's moments and its step, and takes the learning rates configured now."""
        for entry in self.trainer.lr_scheduler_configs:
            scheduler = entry.scheduler
            assert isinstance(scheduler, LambdaLR)
            groups = scheduler.optimizer.param_groups
            scheduler.base_lrs = [self.optim.omega_lr if g["name"] == "omegas" else self.optim.lr for g in groups]
            for group, peak, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
                group["initial_lr"] = peak
                group["lr"] = peak * factor(scheduler.last_epoch)

    def configure_optimizers(self) -> Any:
        optimizer, scheduler = self.optim.build(self.predictor, num_steps=self.num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        # Under bf16-mixed Lightning refuses to clip with a fused optimiser, for a loss scale that bf16 does not have.
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        norm = self.spread.clip_gradients(weights, gradient_clip_val or None)
        if norm is not None:
            self.recorder.record("train/grad_norm", norm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["sm_diffusion"] = self.provenance
        checkpoint["micro_steps"] = self.trainer.accumulate_grad_batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning counts micro-batches: where a step now has another number of them, its counters are translated."""
        then, now = checkpoint.get("micro_steps"), self.trainer.accumulate_grad_batches
        if then is None or then == now:
            return
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            ready = counts["ready"]
            if ready % then:
                size = self.noise.global_batch_sequences // self.trainer.world_size // then
                raise UserError(
                    f"data.micro_batch_sequences: the checkpoint lies inside an optimizer step of {then} micro-batches "
                    f"of {size} sequences; continue with data.micro_batch_sequences={size}"
                )
            # The newest batch may not be counted as completed yet: what is missing stays missing.
            counts.update({name: ready // then * now - (ready - count) for name, count in counts.items()})
