"""Every process holds all parameters: one process, or several that average their gradients (DDP)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn

from sm_diffusion.training.strategies.base import Trained, TrainingStrategy
from sm_diffusion.training.strategies.saving import save_on_first_rank


class WholeParameters(TrainingStrategy):
    """The answers of a process that holds all parameters and, after the backward pass, all gradients."""

    def adopt(self, trained: Trained) -> None:
        pass

    def complete_loss(self, loss: Tensor, *, feedback: bool) -> Tensor:
        return loss

    def clip_gradients(self, weights: Sequence[nn.Parameter], max_norm: float | None) -> Tensor:
        if max_norm is None:
            return torch.nn.utils.get_total_norm([weight.grad for weight in weights if weight.grad is not None])
        return torch.nn.utils.clip_grad_norm_(weights, max_norm)

    def release_gathered(self) -> None:
        pass

    def gathered(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        return nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        return tensor


class SingleProcessStrategy(WholeParameters, SingleDeviceStrategy):
    """One process on one device."""


class ReplicatedStrategy(WholeParameters, DDPStrategy):
    """DDP whose failed saves end all ranks with one message."""

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        save_on_first_rank(self, lambda: self.checkpoint_io.save_checkpoint(checkpoint, filepath))
