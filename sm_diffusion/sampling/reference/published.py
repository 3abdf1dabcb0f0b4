"""The published samplers' random numbers, to reproduce their texts token for token. O(B L V): for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from sm_diffusion.sampling.noise import StepNoise
from sm_diffusion.sampling.orders.ancestral import TransitionPolicy
from sm_diffusion.sampling.orders.base import Proposal, State, UnmaskPolicy, same_time

_EPS = 1e-10


def exponential(uniform: Tensor) -> Tensor:
    """1e-10 - log(u + 1e-10): the published approximation of an exponential variate."""
    return _EPS - (uniform + _EPS).log()


class Race:
    """Drawer and measure at once: argmax_v p_v / g_v over exponential variates g, and the winner's ratio."""

    def __init__(self, exponential_MV: Tensor) -> None:
        self.exponential_MV = exponential_MV

    def __call__(self, p_CV: Tensor, positions_C: Tensor) -> Tensor:
        exponential_CV = self.exponential_MV[positions_C]
        return (p_CV[:, : exponential_CV.shape[1]] / exponential_CV).argmax(-1)


class RaceRatio:
    """p_v / g_v of the drawn token."""

    def __init__(self, exponential_MV: Tensor) -> None:
        self.exponential_MV = exponential_MV

    def __call__(self, p_CV: Tensor, ids_C: Tensor, positions_C: Tensor) -> Tensor:
        return p_CV.gather(1, ids_C[:, None]).squeeze(1) / self.exponential_MV[positions_C, ids_C]


class PublishedRace(UnmaskPolicy):
    """A transition policy whose choice of positions AND tokens is one race over the vocabulary, as published.

    Each step consumes rand(B, L, V) float64 from the generator, in the authors' order: position (b, l) takes
    argmax_v q_v / g_v with q from the policy's rates. The same distribution as choosing positions first.
    """

    def __init__(self, policy: TransitionPolicy, *, mask_id: int, vocab_size: int, generator: torch.Generator) -> None:
        self.policy = policy
        self.mask_id = mask_id
        self.vocab_size = vocab_size
        self.generator = generator

    def propose(self, state: State, noise: StepNoise) -> Proposal:
        shape = (*state.ids_BL.shape, self.vocab_size)
        g_BLV = exponential(torch.rand(shape, generator=self.generator, dtype=torch.float64))
        rates = self.policy.rates(state)
        mask_BL = g_BLV[..., self.mask_id]
        token_BL = g_BLV.gather(-1, state.ids_BL[..., None]).squeeze(-1)
        remask_BL = state.open_BL & ~state.masked_BL & (rates.remask / mask_BL > (1 - rates.remask) / token_BL)

        def choose(ratio_BL: Tensor) -> Tensor:
            return rates.unmask * ratio_BL > rates.stay / mask_BL

        return Proposal(
            same_time(state, self.policy.grid.times[state.step]),
            state.masked_BL,
            remask_BL if self.policy.remasks else None,
            choose=choose,
            measure=RaceRatio(g_BLV.flatten(0, 1)),
            drawer=Race(g_BLV.flatten(0, 1)),
        )

    def max_steps(self, open_BL: Tensor) -> int:
        return self.policy.max_steps(open_BL)

    @property
    def remasks(self) -> bool:
        return self.policy.remasks

    @property
    def end_time(self) -> float:
        return self.policy.end_time
