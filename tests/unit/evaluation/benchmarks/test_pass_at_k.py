"""pass@k against the enumeration of all subsets."""

from __future__ import annotations

from itertools import combinations

import pytest

from sm_diffusion.evaluation.benchmarks.pass_at_k import mean_pass_at_k, pass_at_k
from sm_diffusion.types import UserError


@pytest.mark.parametrize("num_samples", range(1, 9))
def test_equals_enumeration(num_samples):
    for num_correct in range(num_samples + 1):
        right = [index < num_correct for index in range(num_samples)]
        for k in range(1, num_samples + 1):
            subsets = list(combinations(right, k))
            expected = sum(any(subset) for subset in subsets) / len(subsets)
            assert pass_at_k(num_samples, num_correct, k) == pytest.approx(expected, abs=1e-15)


def test_equals_the_published_product_form():
    """1 - prod_{i = n-c+1}^{n} (1 - k / i), the form of the paper's listing, at its n = 200."""
    for num_correct in (1, 3, 50, 190):
        for k in (1, 10, 100):
            product = 1.0
            for i in range(200 - num_correct + 1, 201):
                product *= 1.0 - k / i
            expected = 1.0 if 200 - num_correct < k else 1.0 - product
            assert pass_at_k(200, num_correct, k) == pytest.approx(expected, abs=1e-12)


def test_is_stable_for_large_numbers():
    assert pass_at_k(100_000, 1, 1) == 1e-5
    assert pass_at_k(100_000, 1, 50_000) == 0.5
    assert pass_at_k(5, 0, 5) == 0.0
    assert pass_at_k(5, 1, 5) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(1, 0, 2), (3, 4, 1), (3, -1, 1), (3, 1, 0), (0, 0, 1)])
def test_refuses_what_cannot_be_estimated(n, c, k):
    with pytest.raises(UserError, match="pass@"):
        pass_at_k(n, c, k)


def test_mean():
    assert mean_pass_at_k([(2, 1), (4, 4)], 1) == 0.75
    with pytest.raises(UserError, match="no problems"):
        mean_pass_at_k([], 1)
