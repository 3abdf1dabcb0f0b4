"""What training asks of a strategy, beside what Lightning asks of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn

from sm_diffusion.diffusion.metrics import Recorder
from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.types import UserError


class Trained(Protocol):
    """What a strategy may know of the module it trains."""

    predictor: Predictor
    recorder: Recorder

    def step_spends_feedback(self) -> bool:
        """Whether any micro-batch of the current optimizer step spends the first pass; equal on all ranks."""


class TrainingStrategy(ABC):
    """How a step is spread over processes: where parameters lie, what a gradient's norm is, how shards are read.

    Every implementation is also a Lightning strategy, which steps, reduces and saves.
    """

    @abstractmethod
    def adopt(self, trained: Trained) -> None:
        """Take over what is trained, once the process group exists; shards its parameters where that is the way.

        It is called before every fit and every validation: a second call changes nothing.
        """

    @abstractmethod
    def complete_loss(self, loss: Tensor, *, feedback: bool) -> Tensor:
        """The loss to differentiate; equal in value. feedback: whether the omegas take part in this step."""

    @abstractmethod
    def clip_gradients(self, weights: Sequence[nn.Parameter], max_norm: float | None) -> Tensor | None:
        """Scale the gradients so that their 2-norm over all parameters is at most `max_norm`.

        Args:
            weights: the parameters; those without gradient are left out.
            max_norm: > 0; None: nothing is scaled.

        Returns:
            The norm before, a scalar on its device, equal on all ranks. Nothing waits for it. None: the strategy's
            own step clips, and records the norm.
        """

    @abstractmethod
    def release_gathered(self) -> None:
        """Shards only, from here on: what a forward without backward left gathered would go stale."""

    @abstractmethod
    def gathered(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        """Inside the context these parameters may be computed with outside of a forward pass. A collective."""

    @abstractmethod
    def whole(self, tensor: Tensor) -> Tensor:
        """The full tensor of what was computed from gathered parameters. A collective."""


def training_strategy(strategy: Strategy) -> TrainingStrategy:
    """The trainer's strategy, as training needs it. UserError for one of Lightning's own."""
    if not isinstance(strategy, TrainingStrategy):
        raise UserError(
            f"strategy={type(strategy).__name__}: does not implement TrainingStrategy "
            "(sm_diffusion/training/strategies/base.py); take one of sm_diffusion/training/strategies"
        )
    return strategy
