"""Noise schedules alpha(t), and how diffusion times are sampled.

Forward process: a token is still clean at time t with probability alpha(t), independently of the others.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sm_diffusion.types import Draws


class NoiseSchedule(ABC):
    """alpha: [0, 1] -> [0, 1], decreasing, alpha(0) = 1. All functions are elementwise on float tensors."""

    @abstractmethod
    def alpha(self, t: Tensor) -> Tensor:
        """Probability that a token is clean at time t."""

    @abstractmethod
    def dalpha(self, t: Tensor) -> Tensor:
        """d alpha / d t, <= 0."""

    def mask_probability(self, t: Tensor) -> Tensor:
        """1 - alpha(t): the expected share of masked tokens."""
        return 1 - self.alpha(t)

    def loss_weight(self, t: Tensor) -> Tensor:
        """w(t) = -alpha'(t) / (1 - alpha(t)): weight of a masked token's cross-entropy (MDLM, eq. 10)."""
        return -self.dalpha(t) / self.mask_probability(t)

    def sigma(self, t: Tensor) -> Tensor:
        """Total noise -log alpha(t), nats, >= 0."""
        return -torch.log(self.alpha(t))


class LogLinear(NoiseSchedule):
    """alpha = 1 - (1 - eps) t, so sigma = -log(1 - (1 - eps) t) and w(t) = 1 / t: the factors (1 - eps) cancel."""

    def __init__(self, *, eps: float = 1e-3) -> None:
        self.eps = eps

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - (1 - self.eps) * t

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.eps - 1)

    def mask_probability(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * t


class Linear(NoiseSchedule):
    """alpha = 1 - t (LLaDA, arXiv 2502.09992): log-linear with eps = 0."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -1.0)

    def mask_probability(self, t: Tensor) -> Tensor:
        return t


class Cosine(NoiseSchedule):
    """alpha = eps + (1 - eps) cos(pi t / 2) (MDLM, appendix E)."""

    def __init__(self, *, eps: float = 1e-3) -> None:
        self.eps = eps

    def alpha(self, t: Tensor) -> Tensor:
        return self.eps + (1 - self.eps) * torch.cos(t * (math.pi / 2))

    def dalpha(self, t: Tensor) -> Tensor:
        return -(1 - self.eps) * (math.pi / 2) * torch.sin(t * (math.pi / 2))

    def mask_probability(self, t: Tensor) -> Tensor:
        # 1 - cos(x) = 2 sin^2(x / 2): no cancellation at small t.
        return (1 - self.eps) * 2 * torch.sin(t * (math.pi / 4)) ** 2


class TimeSampler(ABC):
    """Draws one diffusion time in [t_min, t_max] for each sequence."""

    def __init__(self, *, t_min: float = 1e-3, t_max: float = 1.0) -> None:
        self.t_min = t_min
        self.t_max = t_max

    def __call__(self, draws: Draws) -> Tensor:
        """float32 times of shape (B,): the unit-interval points of `unit`, stretched to [t_min, t_max]."""
        return self.t_min + (self.t_max - self.t_min) * self.unit(draws)

    @abstractmethod
    def unit(self, draws: Draws) -> Tensor:
        """Points of [0, 1), shape (B,)."""


class StratifiedTimes(TimeSampler):
    """u_i = (rand_i / n + i / n) mod 1 over the n rows of the global batch: one time in each n-th of the interval."""

    def unit(self, draws: Draws) -> Tensor:
        return (draws.time_B / draws.num_rows + draws.rows_B.to(draws.time_B.dtype) / draws.num_rows) % 1


class UniformTimes(TimeSampler):
    """Independent uniform times."""

    def unit(self, draws: Draws) -> Tensor:
        return draws.time_B
