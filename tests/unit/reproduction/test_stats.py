"""Intervals of a handful of seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sm_diffusion.reproduction.stats import (
    bootstrap_interval,
    difference,
    difference_over_problems,
    mcnemar,
    mean_by_problem,
    student_interval,
    student_quantile,
)


def test_two_or_three_values_give_their_range() -> None:
    assert bootstrap_interval([2.0, 1.0]) == (1.0, 2.0)
    assert bootstrap_interval([3.0, 1.0, 2.0]) == (1.0, 3.0)


def test_fewer_than_two_or_bad_values_give_none() -> None:
    for values in ([], [1.0], [1.0, math.nan], [1.0, math.inf]):
        assert bootstrap_interval(values) is None
        assert student_interval(values) is None


def test_interval_is_fixed_and_knows_no_order() -> None:
    values = list(np.random.default_rng(3).normal(size=12))
    assert bootstrap_interval(values) == bootstrap_interval(values[::-1]) == bootstrap_interval(values)


def test_many_values_agree_with_theory() -> None:
    values = np.random.default_rng(1).normal(5.0, 2.0, size=400)
    low, high = bootstrap_interval(list(values)) or (0, 0)
    half = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - half, abs=0.03)
    assert high == pytest.approx(values.mean() + half, abs=0.03)


def test_coverage_of_three_values_is_three_quarters() -> None:
    """What the table says of three seeds: their range holds the true mean with chance 1 - 2 / 2^3."""
    draws = np.random.default_rng(2).normal(size=(400, 3))
    hits = sum(low <= 0 <= high for low, high in (bootstrap_interval(list(row)) for row in draws[:25]))
    ranges = ((draws.min(axis=1) <= 0) & (draws.max(axis=1) >= 0)).mean()
    assert ranges == pytest.approx(0.75, abs=0.06)
    assert hits == int(((draws[:25].min(axis=1) <= 0) & (draws[:25].max(axis=1) >= 0)).sum())


@pytest.mark.parametrize("count", [2, 3, 12])
def test_student_covers_as_it_says(count: int) -> None:
    draws = np.random.default_rng(count).normal(size=(1500, count))
    intervals = [student_interval(list(row)) for row in draws]
    coverage = sum(low <= 0 <= high for low, high in intervals) / len(intervals)  # type: ignore[misc]
    assert coverage == pytest.approx(0.95, abs=0.02)


def test_pairs_only_shared_seeds() -> None:
    found = difference({1: 2.0, 2: 4.0, 9: 100.0}, {2: 3.0, 1: 1.5})
    assert found.spread is not None
    assert (found.spread.mean, found.spread.n) == (0.75, 2)
    assert found.interval == (0.5, 1.0)
    assert difference({1: 1.0}, {2: 1.0}).verdict() == "cannot be compared: the rows share no seed"


def test_verdicts() -> None:
    zeros = dict.fromkeys(range(4), 0.0)
    steady = difference(dict(enumerate([1.0, 1.1, 0.9, 1.05])), zeros)
    assert steady.verdict().startswith("+1.012 [+0.938, +1.08] over 4 paired seeds: outside the noise (Student's t [")
    noisy = difference(dict(enumerate([1.0, -1.1, 0.9, -1.0])), zeros)
    assert noisy.inside_noise
    assert noisy.verdict().endswith("inside the noise")
    few = difference({1: 0.1, 2: 0.9}, zeros | {1: 0.0, 2: 0.0})
    assert "outside the noise by the bootstrap, not by Student's t" in few.verdict()
    same = difference({1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0})
    assert same.verdict().endswith("inside the noise")


def test_student_quantiles_are_those_of_the_tables() -> None:
    table = {1: 12.706, 2: 4.303, 4: 2.776, 15: 2.131, 16: 2.120, 29: 2.045, 30: 2.042, 60: 2.000, 1000: 1.962}
    assert {freedom: round(student_quantile(freedom), 3) for freedom in table} == table


def test_mcnemar() -> None:
    """10 problems that one alone solves, 1 that the other does: 2 (1 + 11) / 2^11."""
    first = {f"a{i}": True for i in range(10)} | {"b": False, "both": True, "alone": True}
    second = {f"a{i}": False for i in range(10)} | {"b": True, "both": True}
    found = mcnemar(first, second)
    assert (found.only_first, found.only_second) == (10, 1)
    assert found.p_value == pytest.approx(24 / 2048)
    assert mcnemar(first, first).p_value == 1.0
    assert mcnemar({"a": True, "b": False}, {"a": False, "b": True}).p_value == 1.0


def test_difference_over_problems() -> None:
    rng = np.random.default_rng(0)
    hard = rng.random(400)
    first = {str(i): float(rng.random() < 0.9 * hard[i]) for i in range(400)}
    same = difference_over_problems(first, first)
    assert (same.mean, same.interval, same.num_problems) == (0.0, (0.0, 0.0), 400)
    better = {name: max(value, float(int(name) % 4 == 0)) for name, value in first.items()}
    found = difference_over_problems(better, first)
    assert found.interval is not None
    assert 0 < found.interval[0] < found.mean < found.interval[1]
    standard_error = np.std([better[name] - first[name] for name in first]) / 20
    assert found.interval[1] - found.interval[0] == pytest.approx(2 * 1.96 * standard_error, rel=0.1)
    with pytest.raises(ValueError, match="share no problem"):
        difference_over_problems({"a": 1.0}, {"b": 1.0})


def test_mean_by_problem() -> None:
    assert mean_by_problem([("a", True), ("a", False), ("b", True)]) == {"a": 0.5, "b": 1.0}
