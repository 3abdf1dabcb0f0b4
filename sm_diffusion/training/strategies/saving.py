"""Saving in one file: whole or absent on disk, and one message on all ranks where the disk does not take it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.strategies import ParallelStrategy

from sm_diffusion.training.callbacks.preemption import stop_all
from sm_diffusion.training.checkpoints import store as ckpt_store
from sm_diffusion.training.checkpoints.gather import snapshot
from sm_diffusion.training.checkpoints.writer import Writer
from sm_diffusion.types import UserError


class SafeCheckpointIO(CheckpointIO):
    """Checkpoint files of unsharded strategies: written atomically; shards of other runs are read, too."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        tree = snapshot(checkpoint) if self.writer.background else checkpoint
        self.writer.save(lambda: ckpt_store.write_file(tree, Path(path)))

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        tree: dict[str, Any] = ckpt_store.read(Path(path))
        return tree

    def remove_checkpoint(self, path: Any) -> None:
        self.writer.after(lambda: ckpt_store.remove(Path(path)))


def save_on_first_rank(strategy: ParallelStrategy, save: Callable[[], None]) -> None:
    """Run `save` on rank 0; when the disk does not take it, all ranks end together."""
    problem = None
    if strategy.is_global_zero:
        try:
            save()
        except UserError as error:
            problem = str(error)
    problem = strategy.broadcast(problem)
    if problem is not None:
        stop_all(problem, rank=strategy.global_rank)
