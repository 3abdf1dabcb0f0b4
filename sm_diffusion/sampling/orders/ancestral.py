"""Policies that decide WHERE before they know WHAT: ancestral MDLM and the exact first-hitting sampler.

A position moves with a probability that does not depend on the prediction. So positions are chosen first, and the
network's head and the draw touch only those: the same distribution as drawing everywhere and then throwing most of it
away (a test enumerates it).
"""

from __future__ import annotations

import functools
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sm_diffusion.diffusion.schedule import LogLinear, NoiseSchedule
from sm_diffusion.registry import given, refuse, register
from sm_diffusion.sampling.categorical import Measure
from sm_diffusion.sampling.noise import StepNoise
from sm_diffusion.sampling.orders.base import (
    Proposal,
    State,
    TimeGrid,
    UnmaskPolicy,
    grid_problems,
    same_time,
    top_n,
)


class Rates(NamedTuple):
    """The transition of one step: q(x_s | x_t, x_0) at a masked and at an unmasked position.

    unmask, stay: weights of p(x_0) and of the mask at a masked position; >= 0, need not add up to 1.
    remask:       probability that an unmasked position becomes a mask; a number or (B, L).
    """

    unmask: float
    stay: float
    remask: float | Tensor


def mdlm_rates(move_t: float, move_s: float) -> Rates:
    """MDLM (arXiv 2406.07524, eq. 7): unmask with probability (move_t - move_s) / move_t; tokens stay.

    A negative move_s (ReMDM-loop overshoots with very few steps) leaves no mask, as it does in the published race.
    """
    return Rates(move_t - move_s, max(move_s, 0.0), 0.0)


def transition_probs(p_BLV: Tensor, rates: Rates, masked_BL: Tensor, mask_id: int) -> Tensor:
    """The whole q(x_s | x_t), (B, L, V), as published samplers hold it: for tests and small uses.

    p_BLV: the prediction at masked positions, one-hot at the others.
    """
    remask_BL = torch.as_tensor(rates.remask, dtype=p_BLV.dtype).expand(masked_BL.shape)
    q_BLV = p_BLV * torch.where(masked_BL, rates.unmask, 1 - remask_BL)[..., None]
    q_BLV[..., mask_id] = torch.where(masked_BL, rates.stay, remask_BL)
    return q_BLV


@dataclass(frozen=True, kw_only=True)
class TransitionPolicy(UnmaskPolicy):
    """Moves every position by itself, on a time grid, by one uniform number: interface of MDLM and the ReMDM family."""

    num_steps: int = 128
    eps: float = 1e-5  # last time of the grid

    def __post_init__(self) -> None:
        refuse(self)

    def problems(self) -> Iterator[str]:
        yield from grid_problems(self.num_steps, self.eps)
        yield from self.own_problems()

    def own_problems(self) -> Iterator[str]:
        """Of the settings that a subclass adds; none."""
        return iter(())

    @functools.cached_property
    def grid(self) -> TimeGrid:
        return TimeGrid(self.num_steps, self.eps)

    @property
    @abstractmethod
    def measure(self) -> Measure | None:
        """The confidence of a drawn token that `rates` reads from the state; None: it reads none."""

    @abstractmethod
    def rates(self, state: State) -> Rates:
        """The transition of step `state.step`."""

    def propose(self, state: State, noise: StepNoise) -> Proposal:
        rates = self.rates(state)
        draw_BL = state.masked_BL & (noise.move_BL < rates.unmask / (rates.unmask + rates.stay))
        remask_BL = None
        if self.remasks:
            remask_BL = state.open_BL & ~state.masked_BL & (noise.move_BL < rates.remask)
        return Proposal(same_time(state, self.grid.times[state.step]), draw_BL, remask_BL, measure=self.measure)

    def max_steps(self, open_BL: Tensor) -> int:
        return self.grid.num_steps

    @property
    def end_time(self) -> float:
        return self.grid.times[-1]


@register("sampler", "ancestral")
@dataclass(frozen=True, kw_only=True)
class Ancestral(TransitionPolicy):
    """MDLM. A masked position is unmasked with probability (m(t) - m(s)) / m(t).

    schedule: m(t) = 1 - alpha(t). None: m(t) = t, as published; the same for log-linear noise, whose factor cancels.
    """

    schedule: NoiseSchedule | None = given(None)

    @property
    def measure(self) -> Measure | None:
        return None

    @property
    def remasks(self) -> bool:
        return False

    def under(self, schedule: NoiseSchedule | None) -> Ancestral:
        """The same for a network trained under a schedule; log-linear noise cancels, so it counts as none."""
        return replace(self, schedule=None if isinstance(schedule, LogLinear) else schedule)

    def rates(self, state: State) -> Rates:
        t, s = self.grid.interval(state.step)
        if self.schedule is None:
            return mdlm_rates(t, s)
        return mdlm_rates(*self.schedule.mask_probability(torch.tensor([t, s], dtype=torch.float64)).tolist())


@register("sampler", "first_hitting")
@dataclass(frozen=True, kw_only=True)
class FirstHitting(UnmaskPolicy):
    """First-hitting sampler (Zheng et al., arXiv 2409.02908, section 3): one position a step, without a time grid.

    With n masks left at time t the next unmasking happens at t u^(1/n), u uniform, at a uniformly random masked
    position: exactly the continuous-time process for alpha = 1 - t. A row takes as many steps as it has masks.

    tokens_per_step: k > 1 unmasks k positions from one prediction: faster, no longer exact. Time then shrinks by
                     u^(1/n + ... + 1/(n - k + 1)), which has the right mean of log t.
    """

    tokens_per_step: int = 1  # 1 is exact; more is faster

    def __post_init__(self) -> None:
        refuse(self)

    def problems(self) -> Iterator[str]:
        if self.tokens_per_step < 1:
            yield f"sampler.tokens_per_step={self.tokens_per_step}: must be >= 1"

    def propose(self, state: State, noise: StepNoise) -> Proposal:
        num_masked_B = state.masked_BL.sum(1)
        left_B = (num_masked_B - self.tokens_per_step).clamp_min(0)
        exponent_B = torch.digamma(num_masked_B.double() + 1) - torch.digamma(left_B.double() + 1)
        count_B = torch.full_like(num_masked_B, self.tokens_per_step)
        return Proposal(state.time_B * noise.row_B**exponent_B, top_n(noise.order_BL, state.masked_BL, count_B))

    def max_steps(self, open_BL: Tensor) -> int:
        return -(-int(open_BL.sum(1).max()) // self.tokens_per_step)

    @property
    def remasks(self) -> bool:
        return False

    @property
    def end_time(self) -> float:
        return 0.0
