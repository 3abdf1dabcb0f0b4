"""Keyed random numbers: uniform, independent of batching, different for different keys."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sm_diffusion.training import rng


@pytest.mark.parametrize("width", [1, 3, 8, 17])
def test_a_row_does_not_depend_on_its_batch(width: int) -> None:
    together = rng.uniforms(list(range(20)), width, seed=3, step=7, tag="mask")
    shuffled = [13, 2, 3, 4, 19, 0]
    assert torch.equal(rng.uniforms(shuffled, width, seed=3, step=7, tag="mask"), together[shuffled])
    for row in (0, 5, 19):
        assert torch.equal(rng.uniforms([row], width, seed=3, step=7, tag="mask")[0], together[row])


def test_rows_do_not_overlap() -> None:
    values = rng.uniforms(list(range(500)), 5, seed=0, step=0, tag="mask")
    assert len(np.unique(values.numpy())) > 0.999 * values.numel()


def test_keys_differ() -> None:
    base = rng.uniforms([0], 64, seed=1, step=1, tag="mask")
    for other in (
        rng.uniforms([0], 64, seed=2, step=1, tag="mask"),
        rng.uniforms([0], 64, seed=1, step=2, tag="mask"),
        rng.uniforms([0], 64, seed=1, step=1, tag="time"),
    ):
        assert not torch.equal(base, other)


def test_uniform_on_the_unit_interval() -> None:
    values = rng.uniforms(list(range(4000)), 16, seed=5, step=0, tag="mask")
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values.numpy(), bins=20, range=(0, 1))[0]
    expected = values.numel() / 20
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert chi_square < 45  # 19 degrees of freedom: p < 1e-3 beyond 43.8, and the seed is fixed


def test_evaluation_times_are_stratified_over_the_whole_set() -> None:
    rows = list(range(50))
    draws = rng.evaluation_draws(rows, 4, num_rows=50, seed=1)
    assert sorted(draws.rows_B.tolist()) == rows
    assert draws.rows_B.tolist() != rows
    part = rng.evaluation_draws([7, 31], 4, num_rows=50, seed=1)
    assert part.rows_B.tolist() == [draws.rows_B[7], draws.rows_B[31]]
    assert torch.equal(part.mask_BL, draws.mask_BL[[7, 31]])


def test_coin_is_fair() -> None:
    coins = [rng.coin(seed=0, step=step) for step in range(2000)]
    assert np.mean(np.array(coins) < 0.8) == pytest.approx(0.8, abs=0.03)


def test_dropout_seed_is_a_function_of_its_arguments() -> None:
    def draw(**key: int) -> torch.Tensor:
        rng.seed_dropout(**{"seed": 1, "step": 2, "micro_step": 0, "rank": 0} | key)
        return torch.rand(4)

    assert torch.equal(draw(), draw())
    assert not torch.equal(draw(), draw(rank=1))
    assert not torch.equal(draw(), draw(micro_step=1))
    assert not torch.equal(draw(), draw(step=3))


def test_coins_of_micro_batches() -> None:
    """That of the first is the step's; the others are numbers of their own, the same on every rank."""
    first = rng.coin(seed=3, step=5)
    coins = [rng.coin(seed=3, step=5, micro_step=micro) for micro in range(8)]
    assert coins[0] == first
    assert len(set(coins)) == 8
    mixed = [any(rng.coin(seed=0, step=step, micro_step=micro) < 0.5 for micro in range(8)) for step in range(500)]
    assert np.mean(mixed) == pytest.approx(1 - 0.5**8, abs=0.01)
