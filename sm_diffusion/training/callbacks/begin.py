"""The moment from which a run's folder is this run's: for a continued one, once its checkpoint has been taken up."""

from __future__ import annotations

from collections.abc import Callable

import lightning as L
from lightning.pytorch.callbacks import Callback


class BeginRun(Callback):
    """Writes the head of a run's folder once, on the first rank.

    What an earlier program left there (results, settings) is replaced only when everything that can refuse to go on
    has accepted the checkpoint.

    Args:
        write: what is to be done.
    """

    def __init__(self, write: Callable[[], object]) -> None:
        self._write: Callable[[], object] | None = write

    def now(self, *, first: bool = True) -> None:
        """At once, unless it was done before. first: whether this is the process that writes."""
        write, self._write = self._write, None
        if write is not None and first:
            write()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.now(first=trainer.is_global_zero)
