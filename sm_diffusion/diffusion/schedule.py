"""Noise schedules alpha(t), and how diffusion times are sampled.

Forward process: a token is still clean at time t with probability alpha(t), independently of the others.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sm_diffusion.registry import refuse, register
from sm_diffusion.types import Draws


class NoiseSchedule(ABC):
    """alpha: [0, 1] -> [0, 1], decreasing, alpha(0) = 1. All functions are elementwise on float tensors."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is clean at time t."""

    @abstractmethod
    def dalpha(self, t: Tensor) -> Tensor:
        """d alpha / d t, <= 0."""

    @abstractmethod
    def mask_probability(self, t: Tensor) -> Tensor:
        """1 - alpha(t), the expected share of masked tokens, without cancellation at small t."""

    def loss_weight(self, t: Tensor) -> Tensor:
        """w(t) = -alpha'(t) / (1 - alpha(t)): weight of a masked token's cross-entropy (MDLM, eq. 10)."""
        return -self.dalpha(t) / self.mask_probability(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Total noise -log alpha(t), nats, >= 0."""
        return -torch.log(self.alpha(t))


@register("schedule", "log_linear")
@dataclass(frozen=True, kw_only=True)
class LogLinear(NoiseSchedule):
    """alpha = 1 - (1 - eps) t, so sigma = -log(1 - (1 - eps) t) and w(t) = 1 / t: the factors (1 - eps) cancel."""

    eps: float = 1e-3  # what stays clean at t = 1

    def __post_init__(self) -> None:
        refuse(self)

    def problems(self) -> Iterator[str]:
        if not 0 <= self.eps <= 0.5:
            yield f"schedule.eps={self.eps}: must lie in [0, 0.5]"

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - (1 - self.eps) * t

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.eps - 1)

    def mask_probability(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * t


@register("schedule", "linear")
@dataclass(frozen=True, kw_only=True)
class Linear(NoiseSchedule):
    """alpha = 1 - t (LLaDA, arXiv 2502.09992): log-linear with eps = 0."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -1.0)

    def mask_probability(self, t: Tensor) -> Tensor:
        return t


@register("schedule", "cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine(NoiseSchedule):
    """alpha = eps + (1 - eps) cos(pi t / 2) (MDLM, appendix E)."""

    eps: float = 1e-3  # what stays clean at t = 1

    def __post_init__(self) -> None:
        refuse(self)

    def problems(self) -> Iterator[str]:
        if not 0 <= self.eps <= 0.5:
            yield f"schedule.eps={self.eps}: must lie in [0, 0.5]"

    def alpha(self, t: Tensor) -> Tensor:
        return self.eps + (1 - self.eps) * torch.cos(t * (math.pi / 2))

    def dalpha(self, t: Tensor) -> Tensor:
        return -(1 - self.eps) * (math.pi / 2) * torch.sin(t * (math.pi / 2))

    def mask_probability(self, t: Tensor) -> Tensor:
        # 1 - cos(x) = 2 sin^2(x / 2): no cancellation at small t.
        return (1 - self.eps) * 2 * torch.sin(t * (math.pi / 4)) ** 2


@dataclass(frozen=True, kw_only=True)
class TimeSampler(ABC):
    """Draws one diffusion time in [t_min, t_max] for each sequence."""

    t_min: float = 1e-3
    t_max: float = 1.0

    def __call__(self, draws: Draws) -> Tensor:
        """float32 times of shape (B,): the unit-interval points of `unit`, stretched to [t_min, t_max]."""
        return self.t_min + (self.t_max - self.t_min) * self.unit(draws)

    @abstractmethod
    def unit(self, draws: Draws) -> Tensor:
        """Points of [0, 1), shape (B,)."""


@register("times", "stratified")
@dataclass(frozen=True, kw_only=True)
class StratifiedTimes(TimeSampler):
    """u_i = (rand_i / n + i / n) mod 1 over the n rows of the global batch: one time in each n-th of the interval."""

    def unit(self, draws: Draws) -> Tensor:
        return (draws.time_B / draws.num_rows + draws.rows_B.to(draws.time_B.dtype) / draws.num_rows) % 1


@register("times", "uniform")
@dataclass(frozen=True, kw_only=True)
class UniformTimes(TimeSampler):
    """Independent uniform times."""

    def unit(self, draws: Draws) -> Tensor:
        return draws.time_B
