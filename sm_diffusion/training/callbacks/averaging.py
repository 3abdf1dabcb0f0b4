"""An average of the weights, kept beside a run and read by its validation."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from sm_diffusion.training.ema import ExponentialMovingAverage
from sm_diffusion.training.module import DiffusionModule


class EMACallback(Callback):
    """Averages the weights once an optimizer step; validation and evaluation read the average.

    scope: "network" (as published: the omegas are read raw) or "all".
    """

    def __init__(self, *, decay: float, scope: str) -> None:
        self.decay = decay
        self.scope = scope
        self.ema: ExponentialMovingAverage | None = None
        self._loaded: dict[str, Any] | None = None
        self._last_step = 0

    @property
    def state_key(self) -> str:
        return "EMACallback"

    def on_fit_start(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:  # type: ignore[override]
        named = [
            (name, parameter)
            for name, parameter in pl_module.predictor.named_parameters()
            if self.scope == "all" or name.startswith("denoiser.")
        ]
        self.ema = ExponentialMovingAverage(named, decay=self.decay)
        self._last_step = trainer.global_step
        if self._loaded is not None:
            self.ema.load_state_dict(self._loaded)
            self._loaded = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step  # after a checkpoint was restored

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._last_step and self.ema is not None:
            self._last_step = trainer.global_step
            self.ema.update()

    def on_validation_start(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:  # type: ignore[override]
        if self.ema is not None:
            pl_module.spread.release_gathered()
            self.ema.swap_in()

    def on_validation_end(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:  # type: ignore[override]
        pl_module.spread.release_gathered()  # a forward without backward leaves gathered weights behind
        if self.ema is not None:
            self.ema.swap_out()

    def state_dict(self) -> dict[str, Any]:
        assert self.ema is not None, "checkpoints are written during fit only"
        return self.ema.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.ema is not None:
            self.ema.load_state_dict(state_dict)
        else:
            self._loaded = state_dict
