"""Unbiased pass@k (Chen et al. 2021, arXiv 2107.03374, equation 1)."""

from __future__ import annotations

import math
from collections.abc import Iterable

from sm_diffusion.types import UserError


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of k answers, drawn without replacement from n of which c are right, is right.

        pass@k = 1 - C(n - c, k) / C(n, k) = (C(n, k) - C(n - c, k)) / C(n, k)

    The binomials are exact integers and divided once, so the result is the nearest float for any n.

    Args:
        num_samples: n >= 1 answers drawn.
        num_correct: c of them right, 0 <= c <= n.
        k: 1 <= k <= n.
    Returns: a number in [0, 1].
    Raises: UserError outside these ranges (fewer answers than k cannot estimate pass@k without bias).
    """
    if not 1 <= k <= num_samples:
        raise UserError(f"pass@{k}: needs at least {max(k, 1)} answers a problem, {num_samples} given; draw more")
    if not 0 <= num_correct <= num_samples:
        raise UserError(f"pass@{k}: {num_correct} right answers of {num_samples} is impossible")
    total = math.comb(num_samples, k)
    return (total - math.comb(num_samples - num_correct, k)) / total


def mean_pass_at_k(counts: Iterable[tuple[int, int]], k: int) -> float:
    """Mean of pass@k over problems given as (num_samples, num_correct). Raises UserError when there is none."""
    values = [pass_at_k(num_samples, num_correct, k) for num_samples, num_correct in counts]
    if not values:
        raise UserError(f"pass@{k}: no problems to average over")
    return math.fsum(values) / len(values)
