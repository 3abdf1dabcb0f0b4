"""ReMDM: samplers that may turn a token back into a mask (Wang et al., arXiv 2503.00307). alpha = 1 - t throughout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from sm_diffusion.registry import register
from sm_diffusion.sampling.categorical import DrawnProbability, Measure
from sm_diffusion.sampling.orders.ancestral import Rates, TransitionPolicy, mdlm_rates
from sm_diffusion.sampling.orders.base import State


def remdm_rates(alpha_t: float, alpha_s: float, remask: float | Tensor, sigma: float) -> Rates:
    """ReMDM's step (eq. 6), which keeps the marginals of the forward process.

    masked position:   p(x_0) (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), mask the rest
    unmasked position: re-masked with probability `remask` (sigma, unless sigma is per token: then 0 at masks)
    """
    unmask = (alpha_s - (1 - sigma) * alpha_t) / (1 - alpha_t)
    stay = (1 - alpha_s - sigma * alpha_t) / (1 - alpha_t)
    return Rates(unmask, max(stay, 0.0), remask)


def sigma_max(alpha_t: float, alpha_s: float, limit: float) -> float:
    """min(limit, (1 - alpha_s) / alpha_t): the largest re-masking probability that leaves `stay` >= 0."""
    return min(limit, (1 - alpha_s) / alpha_t) if alpha_t > 0 else limit


@register("sampler", "remdm_cap")
@dataclass(frozen=True, kw_only=True)
class RemdmCap(TransitionPolicy):
    """sigma = min(eta, (1 - alpha_s) / alpha_t). Published: eta 0.04 when there are fewer steps than tokens."""

    eta: float = 0.04  # largest probability of re-masking a token in a step

    def own_problems(self) -> Iterator[str]:
        yield from _probability("eta", self.eta)

    @property
    def measure(self) -> Measure | None:
        return None

    @property
    def remasks(self) -> bool:
        return True

    def rates(self, state: State) -> Rates:
        t, s = self.grid.interval(state.step)
        sigma = sigma_max(1 - t, 1 - s, self.eta)
        return remdm_rates(1 - t, 1 - s, sigma, sigma)


@register("sampler", "remdm_rescale")
@dataclass(frozen=True, kw_only=True)
class RemdmRescale(TransitionPolicy):
    """sigma = eta * min(1, (1 - alpha_s) / alpha_t)."""

    eta: float = 0.015  # share of the largest possible re-masking probability

    def own_problems(self) -> Iterator[str]:
        yield from _probability("eta", self.eta)

    @property
    def measure(self) -> Measure | None:
        return None

    @property
    def remasks(self) -> bool:
        return True

    def rates(self, state: State) -> Rates:
        t, s = self.grid.interval(state.step)
        sigma = self.eta * sigma_max(1 - t, 1 - s, 1.0)
        return remdm_rates(1 - t, 1 - s, sigma, sigma)


@register("sampler", "remdm_conf")
@dataclass(frozen=True, kw_only=True)
class RemdmConf(TransitionPolicy):
    """sigma_l = softmax_l(-psi) * min(1, (1 - alpha_s) / alpha_t) over the tokens drawn so far in the row.

    psi_l is the probability with which the token at l was drawn (after truncation, as published): an unsure token is
    re-masked sooner. The published code stores psi in bfloat16; here it is float64.
    """

    @property
    def measure(self) -> Measure | None:
        return DrawnProbability()

    @property
    def remasks(self) -> bool:
        return True

    def rates(self, state: State) -> Rates:
        t, s = self.grid.interval(state.step)
        drawn_BL = state.confidence_BL > -float("inf")
        eta_BL = (-state.confidence_BL).masked_fill(~drawn_BL, -float("inf")).softmax(-1)
        # A row without tokens gives 0 / 0.
        return remdm_rates(1 - t, 1 - s, eta_BL.nan_to_num(0.0) * sigma_max(1 - t, 1 - s, 1.0), 0.0)


@register("sampler", "remdm_loop")
@dataclass(frozen=True, kw_only=True)
class RemdmLoop(TransitionPolicy):
    """Plain MDLM down to alpha_on, then a loop at constant alpha_on that re-masks, then MDLM to the end.

    t > t_on:           move chance 1 - (1 - t) alpha_on / (1 - t_on)
    t_off < t <= t_on:  sigma = eta at alpha_t = alpha_s = alpha_on
    t <= t_off:         move chance t (1 - alpha_on) / t_off
    Published: as the defaults, with as many steps as tokens.
    """

    eta: float = 0.02
    t_on: float = 0.55  # the loop lasts from t_on down to t_off
    t_off: float = 0.05
    alpha_on: float = 0.9  # share of tokens during the loop

    def own_problems(self) -> Iterator[str]:
        yield from _probability("eta", self.eta)
        if not 0 < self.t_off < self.t_on < 1 or not 0 < self.alpha_on < 1:
            yield (
                f"sampler.t_off={self.t_off}, t_on={self.t_on}, alpha_on={self.alpha_on}: "
                "need 0 < t_off < t_on < 1, 0 < alpha_on < 1"
            )
        elif self.eta > (1 - self.alpha_on) / self.alpha_on:
            largest = (1 - self.alpha_on) / self.alpha_on
            yield f"sampler.eta={self.eta}: must be <= (1 - alpha_on) / alpha_on = {largest:.3g}"

    @property
    def measure(self) -> Measure | None:
        return None

    @property
    def remasks(self) -> bool:
        return True

    def rates(self, state: State) -> Rates:
        t, s = self.grid.interval(state.step)
        if t > self.t_on:
            slope = self.alpha_on / (1 - self.t_on)
            return mdlm_rates(1 - (1 - t) * slope, 1 - (1 - s) * slope)
        if t > self.t_off:
            return remdm_rates(self.alpha_on, self.alpha_on, self.eta, self.eta)
        slope = (1 - self.alpha_on) / self.t_off
        return mdlm_rates(t * slope, s * slope)


def _probability(name: str, value: float) -> Iterator[str]:
    if not 0 <= value <= 1:
        yield f"sampler.{name}={value}: must lie in [0, 1]"
