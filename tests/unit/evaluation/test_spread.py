"""Means, deviations and differences over seeds."""

from __future__ import annotations

import math

import pytest

from sm_diffusion.evaluation.spread import Spread, paired_difference, spread


def test_spread() -> None:
    assert spread([2.0]) == Spread(2.0, None, 1)
    assert spread([1.0, 3.0]) == Spread(2.0, math.sqrt(2), 2)
    bad = spread([1.0, math.nan])
    assert math.isnan(bad.mean)
    assert bad.std is not None
    assert math.isnan(bad.std)
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_differences_are_paired_by_seed() -> None:
    assert paired_difference({1: 10.0, 2: 20.0, 5: 0.0}, {1: 9.0, 2: 19.0, 3: 7.0}) == Spread(1.0, 0.0, 2)
    assert paired_difference({1: 10.0}, {2: 9.0}) is None
