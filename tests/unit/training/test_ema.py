"""The average of the weights, against plain arithmetic."""

from __future__ import annotations

import torch
from torch import nn

from sm_diffusion.training.ema import ExponentialMovingAverage


def test_average_follows_the_published_recurrence() -> None:
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    frozen = nn.Parameter(torch.tensor([5.0]), requires_grad=False)
    ema = ExponentialMovingAverage([("w", weight), ("f", frozen)], decay=0.9)
    expected = weight.detach().clone()
    for step in range(1, 40):
        with torch.no_grad():
            weight += step
        ema.update()
        decay = min(0.9, (1 + step) / (10 + step))
        expected = expected - (1 - decay) * (expected - weight.detach())
    torch.testing.assert_close(ema.shadow["w"], expected)
    assert "f" not in ema.shadow
    raw = weight.detach().clone()
    ema.swap_in()
    torch.testing.assert_close(weight.detach(), expected)
    ema.swap_out()
    assert torch.equal(weight.detach(), raw)


def test_average_survives_a_round_trip() -> None:
    weight = nn.Parameter(torch.ones(3))
    ema = ExponentialMovingAverage([("w", weight)], decay=0.9)
    with torch.no_grad():
        weight += 1
    ema.update()
    other = ExponentialMovingAverage([("w", nn.Parameter(torch.zeros(3)))], decay=0.9)
    other.load_state_dict(ema.state_dict())
    assert torch.equal(other.shadow["w"], ema.shadow["w"])
    assert other.num_updates == 1
