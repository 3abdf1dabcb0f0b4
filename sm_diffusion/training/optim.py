"""AdamW with a group of its own for the omegas, and the learning-rate schedules."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from sm_diffusion.registry import register


class OptimSettings(ABC):
    """What a user chooses as `optim`: a dataclass with learning rates for the network and the omegas."""

    lr: float
    omega_lr: float
    clip_norm: float  # global gradient norm; 0: no clipping

    @abstractmethod
    def build(self, predictor: nn.Module, *, num_steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
        """The optimiser over `optimizer_groups(predictor)`, and its schedule over a run of num_steps steps."""


@register("optim", "adamw")
@dataclass(frozen=True, kw_only=True)
class AdamW(OptimSettings):
    """AdamW (arXiv 1711.05101) with linear warm-up; the omegas are a group without weight decay."""

    lr: float = 3e-4  # network, peak
    omega_lr: float = 1e-2  # omegas, peak
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0  # network only
    warmup_steps: int = 2500  # linear
    decay: Literal["constant", "cosine"] = "constant"  # cosine: to min_lr_ratio of the peak at trainer.max_steps
    min_lr_ratio: float = 0.0
    clip_norm: float = 1.0  # global gradient norm; 0: no clipping

    def problems(self) -> Iterator[str]:
        for key in ("lr", "omega_lr", "eps"):
            if not vars(self)[key] > 0:
                yield f"optim.{key}={vars(self)[key]}: must be positive"
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            yield f"optim.betas={list(self.betas)}: must be two numbers in [0, 1); published: [0.9, 0.999]"
        for key in ("weight_decay", "warmup_steps", "clip_norm"):
            if vars(self)[key] < 0:
                yield f"optim.{key}={vars(self)[key]}: must be >= 0"
        if not 0 <= self.min_lr_ratio <= 1:
            yield f"optim.min_lr_ratio={self.min_lr_ratio}: must lie in [0, 1]"

    def build(self, predictor: nn.Module, *, num_steps: int) -> tuple[torch.optim.Optimizer, LambdaLR]:
        own: dict[str, dict[str, float]] = {
            "network": {"lr": self.lr, "weight_decay": self.weight_decay},
            "omegas": {"lr": self.omega_lr, "weight_decay": 0.0},
        }
        groups: list[dict[str, object]] = [
            {"params": parameters, **own[name], "name": name} for name, parameters in optimizer_groups(predictor)
        ]
        betas = (self.betas[0], self.betas[1])
        optimizer = torch.optim.AdamW(groups, betas=betas, eps=self.eps, fused=True)
        return optimizer, LambdaLR(optimizer, learning_rate_factor(self, num_steps=num_steps))


def learning_rate_factor(settings: AdamW, *, num_steps: int) -> Callable[[int], float]:
    """Factor on the peak learning rate at 0-based step s: warm-up min(1, (s + 1) / warmup), then the decay."""

    def warmup(step: int) -> float:
        return min(1.0, (step + 1) / max(1, settings.warmup_steps))

    def cosine(step: int) -> float:
        span = max(1, num_steps - settings.warmup_steps)
        done = min(1.0, max(0.0, (step - settings.warmup_steps) / span))
        floor = settings.min_lr_ratio
        return warmup(step) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))

    return cosine if settings.decay == "cosine" else warmup


def optimizer_groups(predictor: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """The trainable parameters in the optimiser's order: the network's, and the omegas' where there are any."""
    network: list[nn.Parameter] = []
    omegas: list[nn.Parameter] = []
    for name, parameter in predictor.named_parameters():
        if parameter.requires_grad:
            (omegas if name.startswith("soft_mask.") else network).append(parameter)
    return [("network", network), *([("omegas", omegas)] if omegas else [])]


def for_summed_gradients(*, clip_norm: float, eps: float, micro_batches: int) -> tuple[float, float]:
    """(clip_norm, eps) for gradients that are averaged over micro-batches, where the given ones are for their sum.

    The released fine-tuning sums: Dream's forward takes **loss_kwargs, so transformers' Trainer does not divide by the
    accumulation (4.53); IBM coding/train/components/trainer.py ignores num_items_in_batch. With n micro-batches the
    mean is g / n of the sum g. Clipping g to c and g / n to c / n gives gradients that differ by n, and AdamW, whose
    moments then differ by n and n^2, moves by m / (sqrt(v) + eps) = (m / n) / (sqrt(v / n^2) + eps / n): the same step.
    Published: clip 7.0, eps 1e-8, n = 8, so clip_norm .875 and eps 1.25e-9. eps matters: gradients of the omegas are
    near 1e-9 to 1e-8 at first. A last step of fewer micro-batches is divided by n as well, so it stays equivalent.
    """
    return clip_norm / micro_batches, eps / micro_batches
