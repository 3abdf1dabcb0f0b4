"""Policies that decide WHERE before they know WHAT: ancestral MDLM and the exact first-hitting sampler.

A position moves with a probability that does not depend on the prediction. So positions are chosen first, and the
network's head and the draw touch only those: the same distribution as drawing everywhere and then throwing most of it
away (a test enumerates it).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from sm_diffusion.diffusion.schedule import NoiseSchedule
from sm_diffusion.sampling.categorical import Measure
from sm_diffusion.sampling.noise import StepNoise
from sm_diffusion.sampling.orders.base import Proposal, State, TimeGrid, UnmaskPolicy, same_time, top_n
from sm_diffusion.types import UserError


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


class TransitionPolicy(UnmaskPolicy):
    """Moves every position by itself, on a time grid, by one uniform number: interface of MDLM and the ReMDM family."""

    def __init__(self, grid: TimeGrid, *, measure: Measure | None, remasks: bool) -> None:
        self.grid = grid
        self.measure = measure
        self._remasks = remasks

    @abstractmethod
    def rates(self, state: State) -> Rates:
        """The transition of step `state.step`."""

    def propose(self, state: State, noise: StepNoise) -> Proposal:
        rates = self.rates(state)
        draw_BL = state.masked_BL & (noise.move_BL < rates.unmask / (rates.unmask + rates.stay))
        remask_BL = None
        if self._remasks:
            remask_BL = state.open_BL & ~state.masked_BL & (noise.move_BL < rates.remask)
        return Proposal(same_time(state, self.grid.times[state.step]), draw_BL, remask_BL, measure=self.measure)

    def max_steps(self, open_BL: Tensor) -> int:
        return self.grid.num_steps

    @property
    def remasks(self) -> bool:
        return self._remasks

    @property
    def end_time(self) -> float:
        return self.grid.times[-1]


class Ancestral(TransitionPolicy):
    """MDLM. A masked position is unmasked with probability (m(t) - m(s)) / m(t).

    schedule: m(t) = 1 - alpha(t). None: m(t) = t, as published; the same for log-linear noise, whose factor cancels.
    """

    def __init__(self, *, num_steps: int, eps: float = 1e-5, schedule: NoiseSchedule | None = None) -> None:
        super().__init__(TimeGrid(num_steps, eps), measure=None, remasks=False)
        self.schedule = schedule

    def rates(self, state: State) -> Rates:
        t, s = self.grid.interval(state.step)
        if self.schedule is None:
            return mdlm_rates(t, s)
        return mdlm_rates(*self.schedule.mask_probability(torch.tensor([t, s], dtype=torch.float64)).tolist())


class FirstHitting(UnmaskPolicy):
    """First-hitting sampler (Zheng et al., arXiv 2409.02908, section 3): one position a step, without a time grid.

    With n masks left at time t the next unmasking happens at t u^(1/n), u uniform, at a uniformly random masked
    position: exactly the continuous-time process for alpha = 1 - t. A row takes as many steps as it has masks.

    tokens_per_step: k > 1 unmasks k positions from one prediction: faster, no longer exact. Time then shrinks by
                     u^(1/n + ... + 1/(n - k + 1)), which has the right mean of log t.
    """

    def __init__(self, *, tokens_per_step: int = 1) -> None:
        if tokens_per_step < 1:
            raise UserError(f"sampler.tokens_per_step={tokens_per_step}: must be >= 1")
        self.tokens_per_step = tokens_per_step

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
