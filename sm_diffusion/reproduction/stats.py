"""What a handful of seeds can say: bootstrap and Student intervals, and paired differences judged by them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sm_diffusion.evaluation.spread import Spread, paired_difference, spread

LEVEL = 0.95
RESAMPLES = 10_000
BOOTSTRAP_SEED = 0
Interval = tuple[float, float]
# 97.5 % quantiles of Student's t for 1, 2, ... degrees of freedom; beyond the table the last one is used.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_LARGE = 30  # degrees of freedom from which the normal quantile is used
_NORMAL = 1.960


def bootstrap_interval(values: Sequence[float]) -> Interval | None:
    """95 % percentile bootstrap interval of the mean: RESAMPLES resamples, drawn from a fixed seed.

    None for fewer than two values, or where one is not finite. With two or three values it is their range, which holds
    the true mean of a symmetric distribution with chance 1/2 or 3/4 only (it misses when all values lie on one side).
    """
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    import numpy as np

    generator = np.random.default_rng(BOOTSTRAP_SEED)
    sample = np.asarray(sorted(values), dtype=np.float64)  # the order of the seeds must not matter
    means = sample[generator.integers(len(sample), size=(RESAMPLES, len(sample)))].mean(axis=1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def student_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean by Student's t: mean ± t std / sqrt(n). None as for `bootstrap_interval`."""
    found = spread(values) if values else None
    if found is None or found.std is None or not math.isfinite(found.std):
        return None
    freedom = found.n - 1
    quantile = _NORMAL if freedom >= _LARGE else _STUDENT[min(freedom, len(_STUDENT)) - 1]
    half = quantile * found.std / math.sqrt(found.n)
    return found.mean - half, found.mean + half


@dataclass(frozen=True)
class Difference:
    """Of two rows, paired over the seeds both have. spread: of the differences, None when no seed is shared."""

    spread: Spread | None
    interval: Interval | None = None
    student: Interval | None = None

    @property
    def inside_noise(self) -> bool:
        """Whether the bootstrap interval covers 0."""
        return self.interval is not None and _covers_zero(self.interval)

    def verdict(self) -> str:
        """What the seeds allow to say, in words."""
        if self.spread is None:
            return "cannot be compared: the rows share no seed"
        if math.isnan(self.spread.mean):
            return "NaN"
        if self.interval is None or self.student is None:
            return f"{self.spread.mean:+.4g}, one seed: its spread is not known"
        text = f"{self.spread.mean:+.4g} {shown(self.interval)} over {self.spread.n} paired seeds: "
        if self.inside_noise:
            return text + "inside the noise"
        if _covers_zero(self.student):
            words = f"outside the noise by the bootstrap, not by Student's t {shown(self.student)}: run more seeds"
            return text + words
        return text + f"outside the noise (Student's t {shown(self.student)})"


def difference(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Of first - second. Pairing removes what a seed (data order, noise) does to both rows."""
    pairs = [first[seed] - second[seed] for seed in sorted(set(first) & set(second))]
    return Difference(paired_difference(first, second), bootstrap_interval(pairs), student_interval(pairs))


def _covers_zero(interval: Interval) -> bool:
    return interval[0] <= 0 <= interval[1]


def shown(interval: Interval) -> str:
    """[low, high], signed, to three digits."""
    return f"[{interval[0]:+.3g}, {interval[1]:+.3g}]"
