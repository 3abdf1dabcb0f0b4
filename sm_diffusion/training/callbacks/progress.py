"""One line that says where a run is: rewritten on a terminal, printed now and then elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from sm_diffusion.training.callbacks.training_log import TrainingLog
from sm_diffusion.training.callbacks.validation import ValidationMetrics
from sm_diffusion.training.module import DiffusionModule


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    hours, rest = divmod(int(max(0.0, seconds)), 3600)
    minutes, seconds_ = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{seconds_:02d}" if hours else f"{minutes}:{seconds_:02d}"


class ProgressLine(Callback):
    """name, step, tokens/s, time left, loss, validation perplexity, omegas. Rank 0 only.

    every_seconds: between lines where the output is no terminal; on a terminal the line is rewritten twice a second.
    """

    def __init__(
        self, *, name: str, training_log: TrainingLog, metrics: ValidationMetrics, every_seconds: float
    ) -> None:
        self.name = name
        self.training_log = training_log
        self.budget = training_log.budget
        self.metrics = metrics
        self.terminal = sys.stderr.isatty()
        self.every_seconds = 0.5 if self.terminal else every_seconds
        self._next = 0.0
        self._start = (0, 0.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = (trainer.global_step, time.perf_counter())
        self._next = time.perf_counter() + min(self.every_seconds, 2.0)
        if trainer.global_step and trainer.is_global_zero:
            self._write(f"{self.name}: continuing at step {trainer.global_step:,}", keep=True)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if trainer.is_global_zero and now >= self._next:
            self._next = now + self.every_seconds
            self._write(self._line(trainer, pl_module, outputs, now), keep=False)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero and self.terminal:
            print(file=sys.stderr)

    def _line(self, trainer: L.Trainer, pl_module: DiffusionModule, outputs: Any, now: float) -> str:
        steps, spent = trainer.global_step - self._start[0], now - self._start[1]
        rate = steps / max(spent, 1e-9)
        left = (trainer.max_steps - trainer.global_step) / rate if rate else 0.0
        if self.budget.max_flops is not None and self.budget.flops:
            share = self.budget.flops / self.budget.max_flops
            total = self.budget.steps / share if share else trainer.max_steps
            left = min(left, (total - trainer.global_step) / rate if rate else 0.0)
        loss = self.training_log.latest.get("train/loss", float(outputs["loss"]) * trainer.accumulate_grad_batches)
        parts = [
            f"{self.name}: step {trainer.global_step:,}/{trainer.max_steps:,}",
            f"{rate * self.budget.tokens_per_step:,.0f} tok/s",
            f"{duration(left)} left",
            f"loss {loss:.3f}",
        ]
        if self.metrics.latest:
            parts.append(f"val ppl {self.metrics.latest['val/ppl']:.3f}")
        # As last logged: sharded omegas cannot be read on one rank alone.
        scalars = [f"{value:.3g}" for name, value in self.training_log.latest.items() if name.startswith("omega/")]
        if scalars:
            parts.append("omega " + " ".join(scalars))
        return "  ".join(parts)

    def _write(self, line: str, *, keep: bool) -> None:
        if self.terminal and not keep:
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)
        else:
            print(line, file=sys.stderr, flush=True)
