"""A trace of a few training steps, as a file that chrome://tracing and Perfetto open."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch.profiler import ProfilerActivity, profile, schedule

from sm_diffusion.files import write_whole

LINES = 30


class Profile(Callback):
    """Optimizer steps of a run: `trace-rank<r>.json`, and the operations that took longest in `summary-rank<r>.txt`.

    folder:        where to; made when it is needed.
    skipped_steps: not traced: the first ones allocate, compile and warm up; at least 1.
    traced_steps:  traced, from there on.
    """

    def __init__(self, *, folder: Path, skipped_steps: int, traced_steps: int) -> None:
        self.folder = folder
        self.skipped_steps, self.traced_steps = skipped_steps, traced_steps
        self.files: list[Path] = []
        self._profile: profile | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        os.environ.setdefault("KINETO_LOG_LEVEL", "3")  # else it writes of its own beginning and end
        activities = [ProfilerActivity.CPU]
        if pl_module.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        micro_steps = int(trainer.accumulate_grad_batches)
        waited, traced = (self.skipped_steps - 1) * micro_steps, self.traced_steps * micro_steps
        plan = schedule(wait=waited, warmup=micro_steps, active=traced, repeat=1)
        rank = trainer.global_rank
        self._profile = profile(
            activities=activities,
            schedule=plan,
            record_shapes=True,
            profile_memory=True,
            on_trace_ready=lambda traced: self._write(traced, rank),
        )
        self._profile.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._profile is not None:
            self._profile.step()
            if self.files:  # all is traced: the rest of the run shall not pay for it
                self._stop()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._profile is not None:
            self._profile.stop()
            self._profile = None

    def _write(self, traced: profile, rank: int) -> None:
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = traced.key_averages().table(sort_by=order, row_limit=LINES)
        writers: dict[str, Callable[[Path], object]] = {
            f"trace-rank{rank}.json": lambda path: traced.export_chrome_trace(str(path)),
            f"summary-rank{rank}.txt": lambda path: path.write_text(str(table), encoding="utf-8"),
        }
        for name, write in writers.items():
            self.files.append(write_whole(self.folder / name, write))
