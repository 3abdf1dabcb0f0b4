"""Mean and spread of a number over repeated runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None when n < 2) and number of runs. NaN stays NaN."""

    mean: float
    std: float | None
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value. A value that is not finite makes the mean so too, never silently dropped."""
    if not values:
        raise ValueError("no values")
    if not all(math.isfinite(value) for value in values):
        return Spread(math.fsum(values) / len(values), math.nan if len(values) > 1 else None, len(values))
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, len(values))


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Spread | None:
    """Of a - b over the seeds both have; None when they share none. Pairing removes what a seed does to both."""
    seeds = sorted(set(a) & set(b))
    return spread([a[seed] - b[seed] for seed in seeds]) if seeds else None
