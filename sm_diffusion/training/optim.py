"""AdamW with a group of its own for the omegas, and the learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from sm_diffusion.types import UserError


@dataclass(frozen=True, kw_only=True)
class OptimSettings:
    """lr, omega_lr: peak learning rates of the network and the omegas. warmup_steps: linear warm-up, optimizer steps.

    decay: "constant", or "cosine" down to min_lr_ratio of the peak at max_steps.
    """

    lr: float
    omega_lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    warmup_steps: int
    decay: str
    min_lr_ratio: float
    max_steps: int


def learning_rate_factor(settings: OptimSettings) -> Callable[[int], float]:
    """Factor on the peak learning rate at 0-based step s: warm-up min(1, (s + 1) / warmup), then the decay."""

    def warmup(step: int) -> float:
        return min(1.0, (step + 1) / max(1, settings.warmup_steps))

    def cosine(step: int) -> float:
        span = max(1, settings.max_steps - settings.warmup_steps)
        done = min(1.0, max(0.0, (step - settings.warmup_steps) / span))
        floor = settings.min_lr_ratio
        return warmup(step) * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done)))

    if settings.decay == "constant":
        return warmup
    if settings.decay == "cosine":
        return cosine
    raise UserError(f"optim.decay={settings.decay}: choose constant or cosine")


def optimizer_groups(predictor: nn.Module) -> list[tuple[str, list[nn.Parameter]]]:
    """The trainable parameters in the optimiser's order: the network's, and the omegas' where there are any."""
    network: list[nn.Parameter] = []
    omegas: list[nn.Parameter] = []
    for name, parameter in predictor.named_parameters():
        if parameter.requires_grad:
            (omegas if name.startswith("soft_mask.") else network).append(parameter)
    return [("network", network), *([("omegas", omegas)] if omegas else [])]


def make_optimizer(
    predictor: nn.Module, settings: OptimSettings
) -> tuple[torch.optim.Optimizer, LambdaLR]:
    """AdamW over the network and, as a second group without weight decay, the omegas."""
    own: dict[str, dict[str, float]] = {
        "network": {"lr": settings.lr, "weight_decay": settings.weight_decay},
        "omegas": {"lr": settings.omega_lr, "weight_decay": 0.0},
    }
    groups: list[dict[str, object]] = [
        {"params": parameters, **own[name], "name": name} for name, parameters in optimizer_groups(predictor)
    ]
    optimizer = torch.optim.AdamW(groups, betas=settings.betas, eps=settings.eps, fused=True)
    return optimizer, LambdaLR(optimizer, learning_rate_factor(settings))
