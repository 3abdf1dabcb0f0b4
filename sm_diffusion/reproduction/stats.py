"""What a handful of seeds can say, and a benchmark's problems: intervals, and paired differences judged by them."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from sm_diffusion.evaluation.spread import Spread, paired_difference, spread

LEVEL = 0.95
RESAMPLES = 10_000
BOOTSTRAP_SEED = 0
Interval = tuple[float, float]


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


@functools.cache
def student_quantile(freedom: int) -> float:
    """The 97.5 % quantile of Student's t with that many degrees of freedom, at least 1."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def student_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean by Student's t: mean ± t std / sqrt(n). None as for `bootstrap_interval`."""
    found = spread(values) if values else None
    if found is None or found.std is None or not math.isfinite(found.std):
        return None
    half = student_quantile(found.n - 1) * found.std / math.sqrt(found.n)
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


# ------------------------------------------------------------------------------------------------- paired by problem


@dataclass(frozen=True)
class McNemar:
    """Two models on the same problems. only_first, only_second: solved by one alone. p_value: two-sided, exact."""

    only_first: int
    only_second: int
    p_value: float


def mcnemar(first: Mapping[str, bool], second: Mapping[str, bool]) -> McNemar:
    """McNemar's exact test over the problems both have: whether one solves more than the other.

    Of the n problems that one alone solves, each is the first's with chance 1/2 under the null hypothesis; the p-value
    is min(1, 2 P(X <= the smaller count)), X ~ Binomial(n, 1/2). 1 where no problem tells them apart.
    """
    shared = set(first) & set(second)
    ahead = sum(first[name] and not second[name] for name in shared)
    behind = sum(second[name] and not first[name] for name in shared)
    tail = sum(math.comb(ahead + behind, k) for k in range(min(ahead, behind) + 1))
    return McNemar(ahead, behind, min(1.0, 2 * tail / 2 ** (ahead + behind)))


@dataclass(frozen=True)
class ProblemDifference:
    """Mean of first - second over problems, in the units of the scores, and its 95 % bootstrap interval."""

    mean: float
    interval: Interval | None
    num_problems: int


def difference_over_problems(first: Mapping[str, float], second: Mapping[str, float]) -> ProblemDifference:
    """Of two models' scores a problem (0 or 1, or the share of samples or seeds that pass), paired by problem.

    The interval resamples problems, so it says what another draw of problems could give: for 164 problems the standard
    error of one pass@1 is about 3.5 points, which pairing reduces where the models solve the same ones. What another
    training seed could give is in `difference`.
    Raises: ValueError without a shared problem.
    """
    shared = sorted(set(first) & set(second))
    if not shared:
        raise ValueError("the two models share no problem")
    pairs = [float(first[name]) - float(second[name]) for name in shared]
    return ProblemDifference(math.fsum(pairs) / len(pairs), bootstrap_interval(pairs), len(pairs))


def mean_by_problem(passed: Iterable[tuple[str, bool]]) -> dict[str, float]:
    """{problem: share of its answers that passed} of (problem, passed) pairs, over samples and seeds."""
    found: dict[str, list[bool]] = {}
    for name, right in passed:
        found.setdefault(name, []).append(right)
    return {name: sum(rights) / len(rights) for name, rights in found.items()}
