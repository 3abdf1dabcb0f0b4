"""Perplexity of the validation split, summed over its batches and over the processes."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from sm_diffusion.evaluation.perplexity import perplexity_metrics
from sm_diffusion.evaluation.token_nll import TokenNLL
from sm_diffusion.training.module import DiffusionModule
from sm_diffusion.types import LossOutput


class ValidationMetrics(Callback):
    """Perplexity over the whole validation split, synchronised over ranks; `latest` holds the last result."""

    def __init__(self, *, bytes_per_token: float) -> None:
        self.bytes_per_token = bytes_per_token
        self.metric = TokenNLL()
        self.latest: dict[str, float] = {}
        self.latest_step = -1

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.metric.reset()
        self.metric.to(pl_module.device)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert isinstance(outputs, LossOutput)
        self.metric.update(outputs)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:  # type: ignore[override]
        nll = float(self.metric.compute())
        suffix = "" if pl_module.validation_feedback else "_without_feedback"
        found = {f"val/{k}{suffix}": v for k, v in perplexity_metrics(nll, self.bytes_per_token).items()}
        # Lightning files what a module logs while fitting under the step before; the loggers get the true step here,
        # and the module only what checkpoints are chosen by.
        for logger in trainer.loggers:
            logger.log_metrics(found, step=trainer.global_step)
        pl_module.log_dict(found, logger=False, rank_zero_only=True)
        if not suffix:
            self.latest_step = trainer.global_step
        self.latest = self.latest | found
