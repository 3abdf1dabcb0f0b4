"""Optimiser groups and learning rates, against plain arithmetic."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from sm_diffusion.training.optim import AdamW, learning_rate_factor


def settings(**changes: object) -> AdamW:
    values: dict[str, object] = {
        "lr": 1e-3,
        "omega_lr": 1e-2,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "weight_decay": 0.1,
        "warmup_steps": 10,
        "decay": "constant",
        "min_lr_ratio": 0.1,
    }
    return AdamW(**(values | changes))  # type: ignore[arg-type]


def test_constant_schedule_warms_up_and_stays() -> None:
    factor = learning_rate_factor(settings(), num_steps=110)
    assert [factor(s) for s in (0, 4, 9, 10, 1000)] == pytest.approx([0.1, 0.5, 1.0, 1.0, 1.0])


def test_cosine_schedule_ends_at_its_floor() -> None:
    factor = learning_rate_factor(settings(decay="cosine"), num_steps=110)
    assert factor(10) == pytest.approx(1.0)
    assert factor(60) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert factor(110) == pytest.approx(0.1)
    assert factor(500) == pytest.approx(0.1)


def test_omegas_have_a_group_without_weight_decay() -> None:
    module = nn.Module()
    module.denoiser = nn.Linear(2, 2)
    module.soft_mask = nn.Module()
    module.soft_mask.raw_omega_s = nn.Parameter(torch.zeros(1))
    module.soft_mask.raw_omega_b = nn.Parameter(torch.zeros(1), requires_grad=False)
    optimizer, _ = settings().build(module, num_steps=110)
    network, omegas = optimizer.param_groups
    assert (network["name"], network["weight_decay"], len(network["params"])) == ("network", 0.1, 2)
    assert (omegas["name"], omegas["weight_decay"], len(omegas["params"])) == ("omegas", 0.0, 1)
    assert omegas["initial_lr"] == 1e-2




