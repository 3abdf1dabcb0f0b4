"""What happens around the steps: averaging, validation metrics, compute accounting, the guard against NaN."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from sm_diffusion.evaluation.perplexity import TokenNLL, perplexity_metrics
from sm_diffusion.training.callbacks.preemption import stop_all
from sm_diffusion.training.ema import ExponentialMovingAverage
from sm_diffusion.training.module import DiffusionModule
from sm_diffusion.training.strategies.sharding import local_part
from sm_diffusion.types import LossOutput


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
            pl_module.give_up_gathered()
            self.ema.swap_in()

    def on_validation_end(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:  # type: ignore[override]
        pl_module.give_up_gathered()  # a forward without backward leaves gathered weights behind
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


class ComputeMeter(Callback):
    """Counts what a run has spent, logs it with the training loss, and ends the run at `max_flops`.

    FLOPs are nominal: 2 per multiply-add of every matrix product, backward twice the forward pass, the head at the
    expected share of masked positions. They are a function of the steps alone, so that all ranks agree to the last
    digit and runs at equal compute can be compared exactly. Dropping the optimiser, norms and the embedding look-up.
    """

    def __init__(
        self, *, global_batch_sequences: int, length: int, max_flops: float | None, log_every_steps: int
    ) -> None:
        self.sequences = global_batch_sequences
        self.tokens_per_step = global_batch_sequences * length
        self.length = length
        self.max_flops = max_flops
        self.log_every_steps = log_every_steps
        self.steps = 0
        self.forward_passes = 0
        self.seconds = 0.0
        self.flops = 0.0
        self._mark = 0.0
        self._logged = (0, 0.0)
        self._nll_sum: Tensor | None = None
        self._num_tokens: Tensor | None = None
        self.interval: dict[str, float] = {}

    def forward_flops(self, module: DiffusionModule) -> float:
        """FLOPs of one forward pass over one optimizer step's tokens."""
        blocks, head = module.predictor.denoiser.flops_per_token(self.length)
        return self.tokens_per_step * (blocks + head * module.objective.masked_share())

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.perf_counter()
        self._logged = (self.steps, self.seconds)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._count_time()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.perf_counter()  # time spent validating is not training time

    def _count_time(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self._mark
        self._mark = now

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._nll_sum = outputs["nll_sum"] if self._nll_sum is None else self._nll_sum + outputs["nll_sum"]
        self._num_tokens = (
            outputs["num_tokens"] if self._num_tokens is None else self._num_tokens + outputs["num_tokens"]
        )
        if trainer.global_step == self.steps:
            return  # still accumulating
        self._count_time()
        self.steps = trainer.global_step
        self.forward_passes += outputs["num_passes"]
        self.flops += self.forward_flops(pl_module) * (2 + outputs["num_passes"])
        if self.steps % self.log_every_steps == 0 or self.steps == trainer.max_steps:
            self._log(trainer, pl_module)
        if self.max_flops is not None and self.flops >= self.max_flops:
            trainer.should_stop = True

    def _log(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:
        assert self._nll_sum is not None
        assert self._num_tokens is not None
        both = torch.stack([self._nll_sum.double(), self._num_tokens.double()])
        both = trainer.strategy.reduce(both, reduce_op="sum")
        self._nll_sum = self._num_tokens = None
        steps, seconds = self.steps - self._logged[0], self.seconds - self._logged[1]
        self._logged = (self.steps, self.seconds)
        self.interval = {
            "train/loss": float(both[0] / both[1]),
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "compute/tokens_per_second": steps * self.tokens_per_step / max(seconds, 1e-9),
            "compute/forward_passes": float(self.forward_passes),
            "compute/tokens": float(self.steps * self.tokens_per_step),
            "compute/flops": self.flops,
        } | pl_module.scalar_values()
        for logger in trainer.loggers:
            logger.log_metrics(self.interval, step=trainer.global_step)

    def summary(self) -> dict[str, float]:
        """What `results.json` says under "compute"."""
        tokens = self.steps * self.tokens_per_step
        return {
            "steps": self.steps,
            "forward_passes": self.forward_passes,
            "tokens": tokens,
            "flops": self.flops,
            "seconds": self.seconds,
            "tokens_per_second": tokens / max(self.seconds, 1e-9),
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
