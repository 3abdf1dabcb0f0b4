"""Ancestral sampling of MDLM, ReMDM's re-masking samplers, and the exact first-hitting sampler.

All of them decide WHERE before they know WHAT: a position moves with a probability that does not depend on the
prediction. So positions are chosen first, and the network's head and the draw touch only those: the same distribution
as drawing everywhere and then throwing most of it away.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sm_diffusion.diffusion.schedule import NoiseSchedule
from sm_diffusion.sampling.categorical import DrawnProbability, Measure
from sm_diffusion.sampling.noise import StepNoise
from sm_diffusion.sampling.policy import Proposal, State, TimeGrid, UnmaskPolicy, same_time, top_n
from sm_diffusion.types import UserError


class Rates(NamedTuple):
    """The transition of one step: q(x_s | x_t, x_0) at a masked and at an unmasked position.

    unmask, stay: weights of p(x_0) and of the mask at a masked position; >= 0, need not add up to 1.
    remask:       probability that an unmasked position becomes a mask; a number or (B, L).
    """

    unmask: float
    stay: float
    remask: float | Tensor


class Transition(Protocol):
    """A policy that moves every position independently of the others."""

    def rates(self, state: State) -> tuple[float, Rates]: ...

    @property
    def measure(self) -> Measure | None: ...


def mdlm_rates(move_t: float, move_s: float) -> Rates:
    """MDLM's analytic step: unmask with probability (move_t - move_s) / move_t; tokens stay (arXiv 2406.07524, eq. 7)."""
    return Rates(move_t - move_s, move_s, 0.0)


def remdm_rates(alpha_t: float, alpha_s: float, sigma: float | Tensor, masked_sigma: float) -> Rates:
    """ReMDM's step (arXiv 2503.00307, eq. 6), which keeps the marginals of the forward process.

    masked position:   p(x_0) (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), mask (1 - alpha_s - sigma alpha_t) / (1 - alpha_t)
    unmasked position: re-masked with probability sigma
    masked_sigma: the sigma of masked positions (0 where sigma is per token).
    """
    unmask = (alpha_s - (1 - masked_sigma) * alpha_t) / (1 - alpha_t)
    stay = (1 - alpha_s - masked_sigma * alpha_t) / (1 - alpha_t)
    return Rates(unmask, max(stay, 0.0), sigma)


def sigma_max(alpha_t: float, alpha_s: float, limit: float) -> float:
    """min(limit, (1 - alpha_s) / alpha_t): the largest re-masking probability that leaves `stay` >= 0."""
    return min(limit, (1 - alpha_s) / alpha_t) if alpha_t > 0 else limit


def transition_probs(p_BLV: Tensor, rates: Rates, masked_BL: Tensor, mask_id: int) -> Tensor:
    """The whole q(x_s | x_t), (B, L, V), as published samplers hold it: for tests and small uses.

    p_BLV: the prediction at masked positions, one-hot at the others.
    """
    remask_BL = torch.as_tensor(rates.remask, dtype=p_BLV.dtype).expand(masked_BL.shape)
    weight_BL = torch.where(masked_BL, rates.unmask, 1 - remask_BL)
    q_BLV = p_BLV * weight_BL[..., None]
    q_BLV[..., mask_id] = torch.where(masked_BL, rates.stay, remask_BL)
    return q_BLV


def move(policy: Transition, state: State, noise: StepNoise) -> Proposal:
    """Decide every position by one uniform number."""
    t, rates = policy.rates(state)
    draw_BL = state.masked_BL & (noise.move_BL < rates.unmask / (rates.unmask + rates.stay))
    remask_BL = state.open_BL & ~state.masked_BL & (noise.move_BL < rates.remask)
    return Proposal(same_time(state, t), draw_BL, remask_BL, measure=policy.measure)


class Ancestral(UnmaskPolicy):
    """MDLM. A masked position is unmasked with probability (m(t) - m(s)) / m(t).

    schedule: m(t) = 1 - alpha(t). None: m(t) = t, as published; the same for log-linear noise, whose factor cancels.
    """

    measure: Measure | None = None

    def __init__(self, *, num_steps: int, eps: float = 1e-5, schedule: NoiseSchedule | None = None) -> None:
        self.grid = TimeGrid(num_steps, eps)
        self.schedule = schedule

    def rates(self, state: State) -> tuple[float, Rates]:
        t, s = self.grid.interval(state.step)
        if self.schedule is None:
            return t, mdlm_rates(t, s)
        move_t, move_s = self.schedule.mask_probability(torch.tensor([t, s], dtype=torch.float64)).tolist()
        return t, mdlm_rates(move_t, move_s)

    def propose(self, state: State, noise: StepNoise) -> Proposal:
        return move(self, state, noise)

    def max_steps(self, open_BL: Tensor) -> int:
        return self.grid.num_steps

    @property
    def remasks(self) -> bool:
        return False

    @property
    def end_time(self) -> float:
        return self.grid.times[-1]


class RemdmCap(UnmaskPolicy):
    """ReMDM-cap: sigma = min(eta, (1 - alpha_s) / alpha_t), alpha = 1 - t. Published eta: 0.04 (num_steps < length)."""

    measure: Measure | None = None

    def __init__(self, *, num_steps: int, eta: float = 0.04, eps: float = 1e-5) -> None:
        self.grid = TimeGrid(num_steps, eps)
        self.eta = _probability("eta", eta)

    def rates(self, state: State) -> tuple[float, Rates]:
        t, s = self.grid.interval(state.step)
        sigma = sigma_max(1 - t, 1 - s, self.eta)
        return t, remdm_rates(1 - t, 1 - s, sigma, sigma)

    def propose(self, state: State, noise: StepNoise) -> Proposal:
        return move(self, state, noise)

    def max_steps(self, open_BL: Tensor) -> int:
        return self.grid.num_steps

    @property
    def remasks(self) -> bool:
        return True

    @property
    def end_time(self) -> float:
        return self.grid.times[-1]


class RemdmRescale(UnmaskPolicy):
    """ReMDM-rescale: sigma = eta * min(1, (1 - alpha_s) / alpha_t)."""

    measure: Measure | None = None

    def __init__(self, *, num_steps: int, eta: float = 0.015, eps: float = 1e-5) -> None:
        self.grid = TimeGrid(num_steps, eps)
        self.eta = _probability("eta", eta)

    def rates(self, state: State) -> tuple[float, Rates]:
        t, s = self.grid.interval(state.step)
        sigma = self.eta * sigma_max(1 - t, 1 - s, 1.0)
        return t, remdm_rates(1 - t, 1 - s, sigma, sigma)

    def propose(self, state: State, noise: StepNoise) -> Proposal:
        return move(self, state, noise)

    def max_steps(self, open_BL: Tensor) -> int:
        return self.grid.num_steps

    @property
    def remasks(self) -> bool:
        return True

    @property
    def end_time(self) -> float:
        return self.grid.times[-1]


class RemdmConf(UnmaskPolicy):
    """ReMDM-conf: sigma_l = softmax_l(-psi) * min(1, (1 - alpha_s) / alpha_t) over the unmasked positions of a row.

    psi_l is the probability with which the token at l was drawn (after truncation, as published): an unsure token is
    re-masked sooner. The published code stores psi in bfloat16; here it is float64.
    """

    measure: Measure | None = DrawnProbability()

    def __init__(self, *, num_steps: int, eps: float = 1e-5) -> None:
        self.grid = TimeGrid(num_steps, eps)

    def rates(self, state: State) -> tuple[float, Rates]:
        t, s = self.grid.interval(state.step)
        eta_BL = (-state.confidence_BL).masked_fill(state.confidence_BL == -torch.inf, -torch.inf).softmax(-1)
        sigma_BL = eta_BL.nan_to_num(0.0) * sigma_max(1 - t, 1 - s, 1.0)  # a row of masks only: 0 / 0
        return t, remdm_rates(1 - t, 1 - s, sigma_BL, 0.0)

    def propose(self, state: State, noise: StepNoise) -> Proposal:
        return move(self, state, noise)

    def max_steps(self, open_BL: Tensor) -> int:
        return self.grid.num_steps

    @property
    def remasks(self) -> bool:
        return True

    @property
    def end_time(self) -> float:
        return self.grid.times[-1]


class RemdmLoop(UnmaskPolicy):
    """ReMDM-loop: plain MDLM down to alpha_on, then a loop at constant alpha_on that re-masks, then MDLM to the end.

    t > t_on:           move chance 1 - (1 - t) alpha_on / (1 - t_on)
    t_off < t <= t_on:  sigma = eta at alpha_t = alpha_s = alpha_on
    t <= t_off:         move chance t (1 - alpha_on) / t_off
    """

    measure: Measure | None = None

    def __init__(
        self,
        *,
        num_steps: int,
        eta: float = 0.02,
        t_on: float = 0.55,
        t_off: float = 0.05,
        alpha_on: float = 0.9,
        eps: float = 1e-5,
    ) -> None:
        self.grid = TimeGrid(num_steps, eps)
        if not 0 < t_off < t_on < 1 or not 0 < alpha_on < 1:
            raise UserError(f"sampler: need 0 < t_off < t_on < 1 and 0 < alpha_on < 1, got {t_off}, {t_on}, {alpha_on}")
        if _probability("eta", eta) * alpha_on > 1 - alpha_on:
            raise UserError(f"sampler.eta={eta}: must be <= (1 - alpha_on) / alpha_on = {(1 - alpha_on) / alpha_on:.3g}")
        self.eta, self.t_on, self.t_off, self.alpha_on = eta, t_on, t_off, alpha_on

    def rates(self, state: State) -> tuple[float, Rates]:
        t, s = self.grid.interval(state.step)
        if t > self.t_on:
            slope = self.alpha_on / (1 - self.t_on)
            return t, mdlm_rates(1 - (1 - t) * slope, 1 - (1 - s) * slope)
        if t > self.t_off:
            return t, remdm_rates(self.alpha_on, self.alpha_on, self.eta, self.eta)
        slope = (1 - self.alpha_on) / self.t_off
        return t, mdlm_rates(t * slope, s * slope)

    def propose(self, state: State, noise: StepNoise) -> Proposal:
        return move(self, state, noise)

    def max_steps(self, open_BL: Tensor) -> int:
        return self.grid.num_steps

    @property
    def remasks(self) -> bool:
        return True

    @property
    def end_time(self) -> float:
        return self.grid.times[-1]


class FirstHitting(UnmaskPolicy):
    """First-hitting sampler (Zheng et al., arXiv 2409.02908, section 3): one position a step, without time steps.

    With n masks left at time t the next unmasking happens at t u^(1/n), u uniform, at a uniformly random masked
    position: exactly the continuous-time process for alpha = 1 - t. A row needs as many steps as it has masks.

    tokens_per_step: > 1 unmasks that many at once, at the time of the last of them: faster, no longer exact.
    """

    def __init__(self, *, tokens_per_step: int = 1) -> None:
        if tokens_per_step < 1:
            raise UserError(f"sampler.tokens_per_step={tokens_per_step}: must be >= 1")
        self.tokens_per_step = tokens_per_step

    def propose(self, state: State, noise: StepNoise) -> Proposal:
        num_masked_B = state.masked_BL.sum(1)
        # The last of k hitting times: t u^(1/n), with one number per step, exact for k = 1.
        last_B = (num_masked_B - self.tokens_per_step + 1).clamp_min(1)
        time_B = state.time_B * noise.row_B ** (1 / last_B)
        count_B = torch.full_like(num_masked_B, self.tokens_per_step)
        return Proposal(time_B, top_n(noise.order_BL, state.masked_BL, count_B))

    def max_steps(self, open_BL: Tensor) -> int:
        return -(-int(open_BL.sum(1).max()) // self.tokens_per_step)

    @property
    def remasks(self) -> bool:
        return False

    @property
    def end_time(self) -> float:
        return 0.0


def _probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise UserError(f"sampler.{name}={value}: must lie in [0, 1]")
    return value
