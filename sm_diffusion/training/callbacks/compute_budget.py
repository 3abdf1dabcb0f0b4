"""What a run has spent: steps, forward passes, tokens, floating-point operations, seconds; and its end at a limit."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn

from sm_diffusion.training.module import DiffusionModule


class ComputeBudget(Callback):
    """Counts what a run has spent, over all its processes, and ends it at `max_flops`.

    FLOPs are nominal: 2 per multiply-add of every matrix product, backward twice the forward pass, the head at the
    expected share of masked positions. They are a function of the steps alone, so that all ranks agree to the last
    digit and runs at equal compute can be compared exactly. Dropping the optimiser, norms and the embedding look-up.

    Args:
        global_batch_sequences: sequences of one optimizer step, over all processes.
        length: tokens of a sequence.
        max_flops: the run ends with the step that reaches it; None: no limit.
    """

    def __init__(self, *, global_batch_sequences: int, length: int, max_flops: float | None) -> None:
        self.tokens_per_step = global_batch_sequences * length
        self.length = length
        self.max_flops = max_flops
        self.steps = 0
        self.forward_passes = 0
        self.seconds = 0.0
        self.flops = 0.0
        self._mark: float | None = None  # since when time counts; None: it does not, outside of training

    @property
    def state_key(self) -> str:
        return "ComputeMeter"  # what checkpoints have always called it

    @property
    def tokens(self) -> int:
        return self.steps * self.tokens_per_step

    def forward_flops(self, module: DiffusionModule) -> float:
        """FLOPs of one forward pass over one optimizer step's tokens."""
        blocks, head = module.predictor.denoiser.flops_per_token(self.length)
        return self.tokens_per_step * (blocks + head * module.objective.masked_share())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._count_time()
        self._mark = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._mark = time.perf_counter()  # time spent validating is not training time

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._count_time()
        self._mark = None

    def _count_time(self) -> None:
        now = time.perf_counter()
        if self._mark is not None:
            self.seconds += now - self._mark
        self._mark = now

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.steps:
            return  # still accumulating
        self._count_time()
        self.steps = trainer.global_step
        self.forward_passes += outputs["num_passes"]
        self.flops += self.forward_flops(pl_module) * (2 + outputs["num_passes"])
        if self.max_flops is not None and self.flops >= self.max_flops:
            trainer.should_stop = True

    def summary(self) -> dict[str, float]:
        """What `results.json` says under "compute"."""
        return {
            "steps": self.steps,
            "forward_passes": self.forward_passes,
            "tokens": self.tokens,
            "flops": self.flops,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens / max(self.seconds, 1e-9),
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": self.steps,
            "forward_passes": self.forward_passes,
            "seconds": self.seconds,
            "flops": self.flops,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.steps = state_dict["steps"]
        self.forward_passes = state_dict["forward_passes"]
        self.seconds = state_dict["seconds"]
        self.flops = state_dict["flops"]
