"""What a run leaves behind, gathered while it still can be."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback

from sm_diffusion.training.checkpoints.writer import Writer
from sm_diffusion.training.module import DiffusionModule


class FinalState(Callback):
    """Writes the last checkpoint at the end of training, and keeps the learned scalars.

    After fit Lightning moves the weights to the CPU, where NCCL cannot gather what is sharded.
    """

    def __init__(self, *, checkpoint: Path, writer: Writer) -> None:
        self.checkpoint = checkpoint
        self.writer = writer
        self.scalars: dict[str, float] | None = None

    def on_train_end(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:  # type: ignore[override]
        self.scalars = pl_module.scalar_values()
        trainer.save_checkpoint(self.checkpoint)
        self.writer.wait()

    def complete(self, trainer: L.Trainer, pl_module: DiffusionModule) -> dict[str, float]:
        """The scalars. A run that had nothing left to train, and so did not come here, is saved now."""
        if self.scalars is None:
            self.on_train_end(trainer, pl_module)
        assert self.scalars is not None
        return self.scalars
