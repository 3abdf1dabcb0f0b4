"""Statistics of samples over token ids, printed with gen-PPL, which alone can be gamed by repeating oneself."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

Ids = Sequence[int]


def unigram_entropy(ids: Ids) -> float:
    """-sum_v f_v ln f_v in nats, f the token frequencies of ONE sample; in [0, ln len(ids)]. 0 for no token.

    Averaged over samples it is the "entropy" of MDLM's and ReMDM's tables.
    """
    total = len(ids)
    return math.fsum(-count / total * math.log(count / total) for count in Counter(ids).values()) + 0.0


def ngrams(ids: Ids, n: int) -> list[tuple[int, ...]]:
    """The n-grams of a sample, in order."""
    return [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]


def distinct(samples: Sequence[Ids], n: int) -> float:
    """Different n-grams / n-grams over all samples together, in (0, 1] (Li et al. 2016). NaN without an n-gram."""
    found = [gram for ids in samples for gram in ngrams(ids, n)]
    return len(set(found)) / len(found) if found else math.nan


def repetition(ids: Ids, n: int = 4) -> float:
    """1 - different n-grams / n-grams of one sample, in [0, 1) (seq-rep-n of Welleck et al. 2020). 0 without one."""
    grams = ngrams(ids, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def statistics_of(samples: Sequence[Ids]) -> dict[str, float]:
    """entropy (mean, nats), distinct_1 .. distinct_3, repetition_4 (mean), over at least one sample."""
    count = len(samples)
    return {
        "entropy": math.fsum(map(unigram_entropy, samples)) / count,
        **{f"distinct_{n}": distinct(samples, n) for n in (1, 2, 3)},
        "repetition_4": math.fsum(map(repetition, samples)) / count,
    }
