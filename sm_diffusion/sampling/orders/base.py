"""The contract of a policy: which positions get a token now, which become masks again. The loop does the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sm_diffusion.sampling.categorical import Drawer, Measure
from sm_diffusion.sampling.noise import StepNoise
from sm_diffusion.types import UserError


@dataclass(frozen=True, kw_only=True)
class State:
    """Where a batch stands before a step.

    ids_BL:        int64, with masks.
    open_BL:       bool, positions the sampler may write (neither prompt nor padding).
    masked_BL:     bool, open positions that hold the mask.
    confidence_BL: float64, the policy's measure of each token when it was drawn; -inf at masks and given tokens.
    time_B:        float64, diffusion time of the last prediction; 1 before the first.
    step:          0 for the first.
    """

    ids_BL: Tensor
    open_BL: Tensor
    masked_BL: Tensor
    confidence_BL: Tensor
    time_B: Tensor
    step: int


class Proposal(NamedTuple):
    """What a policy wants of one step.

    time_B:    float64, diffusion time at which the prediction is made (noise level and feedback strength follow it).
    draw_BL:   bool, masked positions where a token is drawn.
    remask_BL: bool, unmasked positions that become masks again, or None.
    choose:    which of the drawn tokens are kept, given their confidences (float64 (B, L), -inf elsewhere).
               None: all, and then no other position needs the head of the network.
    measure:   the confidence of a drawn token, or None.
    drawer:    how a token is drawn; None: inverse CDF with the step's uniform numbers.
    block_BL:  bool, open positions of each row's current block, for caches; None: the policy has no blocks.
    """

    time_B: Tensor
    draw_BL: Tensor
    remask_BL: Tensor | None = None
    choose: Callable[[Tensor], Tensor] | None = None
    measure: Measure | None = None
    drawer: Drawer | None = None
    block_BL: Tensor | None = None


class UnmaskPolicy(ABC):
    """Decides the order in which masks become tokens. Policies keep no state between steps: it is all in `State`."""

    @abstractmethod
    def max_steps(self, open_BL: Tensor) -> int:
        """How many steps the loop may take; it ends sooner when nothing is left to do."""

    @abstractmethod
    def propose(self, state: State, noise: StepNoise) -> Proposal:
        """The positions of one step. Every row is decided by its own numbers only."""

    @property
    @abstractmethod
    def remasks(self) -> bool:
        """True when a finished text may be opened again: the loop then takes all its steps."""

    @property
    @abstractmethod
    def end_time(self) -> float:
        """Diffusion time of the final noise-removal pass."""


def grid_problems(num_steps: int, eps: float) -> Iterator[str]:
    """What is wrong with the settings of a grid."""
    if num_steps < 1:
        yield f"sampler.num_steps={num_steps}: must be >= 1"
    if not 0 < eps < 1:
        yield f"sampler.eps={eps}: must lie in (0, 1)"


class TimeGrid:
    """num_steps + 1 times from 1 down to eps, equally spaced, in float32 as published.

    step i goes from t = time(i) to s = t - (1 - eps) / num_steps (MDLM's code: not to time(i + 1), which rounds).
    """

    def __init__(self, num_steps: int, eps: float) -> None:
        for problem in grid_problems(num_steps, eps):
            raise UserError(problem)
        self.num_steps = num_steps
        self.eps = eps
        self.times: list[float] = torch.linspace(1, eps, num_steps + 1).tolist()
        self.dt = (1 - eps) / num_steps

    def interval(self, step: int) -> tuple[float, float]:
        """(t, s), t > s >= 0, of step `step`."""
        return self.times[step], max(self.times[step] - self.dt, 0.0)

    def share(self, step: int) -> float:
        """1 - s / t with both times on the grid, in float32 as Dream computes it; 1 in the last step."""
        if step >= self.num_steps - 1:
            return 1.0
        t, s = torch.tensor(self.times[step]), torch.tensor(self.times[step + 1])
        return float(1 - s / t)


def same_time(state: State, t: float) -> Tensor:
    """The time t for every row."""
    return torch.full_like(state.time_B, t)


def masked_share(state: State) -> Tensor:
    """Masks left / positions to fill, of each row; float64 in [0, 1]."""
    return state.masked_BL.sum(1).double() / state.open_BL.sum(1).clamp_min(1)


def top_n(score_BL: Tensor, eligible_BL: Tensor, count_B: Tensor, *, tie: float = 0.0) -> Tensor:
    """bool: the count_B eligible positions of each row with the largest scores.

    Scores that follow each other within `tie` are one group; a group is taken from its first position on.
    """
    sorted_BL, order_BL = score_BL.masked_fill(~eligible_BL, -torch.inf).sort(dim=-1, descending=True, stable=True)
    next_group_BL = sorted_BL[:, :-1] - sorted_BL[:, 1:] > tie
    group_BL = torch.zeros_like(order_BL)
    group_BL[:, 1:] = next_group_BL.cumsum(-1)
    length = score_BL.shape[1]
    key_BL = torch.empty_like(order_BL).scatter_(1, order_BL, group_BL) * length + torch.arange(
        length, device=score_BL.device
    )
    rank_BL = key_BL.argsort(dim=-1).argsort(dim=-1)
    return eligible_BL & (rank_BL < count_B[:, None])
