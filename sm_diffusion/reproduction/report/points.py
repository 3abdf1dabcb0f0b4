"""Which points an experiment's results hold: accuracy and evaluations, perplexity and entropy, throughput."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sm_diffusion.evaluation.spread import spread
from sm_diffusion.reproduction.collected import Collected, Row
from sm_diffusion.reproduction.report.figures import Point

Lines = dict[str, list[Point]]
Read = Callable[[Mapping[str, Any]], float | None]  # of one run's results
ACCURACY = ("pass@", "acc", "exact_match", "solved")
_GENERATED = re.compile(r"gen/(ppl|entropy)(@[\d.e+-]+)?")
# Rows that differ in a number at the end (of steps, of evaluations), set apart from the name, are points of one line.
_NUMBERED = re.compile(r"[_-](?:nfe|steps?|t|at)?[_-]?(?:\d+(?:[_/-]\d+)?|quarter|half|full)$", re.IGNORECASE)


def family(row: Row) -> str:
    """`sm_t128` and `sm_t256` -> `sm`."""
    name = _NUMBERED.sub("", row.name) or row.name
    return f"{name} @{row.version}" if row.version else name


def metric(name: str) -> Read:
    """Reads one metric; None where a run lacks it or it is not finite."""

    def read(results: Mapping[str, Any]) -> float | None:
        value = results["metrics"].get(name)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

    return read


def evaluations(name: str) -> Read:
    """Network evaluations of the samples that metric `name` judges: measured, or else the sampler's steps."""
    group = name.rpartition("/")[0]

    def read(results: Mapping[str, Any]) -> float | None:
        metrics = results["metrics"]
        measured = metrics.get(f"{group}/nfe", metrics.get("nfe"))
        steps = ((results.get("config") or {}).get("sampler") or {}).get("num_steps")
        value = steps if measured is None else measured
        return float(value) if isinstance(value, int | float) else None

    return read


def point(row: Row, x: Read, y: Read, note: str = "") -> Point | None:
    """Means and deviations over the seeds that have both; None when no seed has."""
    pairs = [(x(results), y(results)) for results in row.runs.values()]
    whole = [(one, two) for one, two in pairs if one is not None and two is not None]
    if not whole:
        return None
    first, second = (spread([pair[index] for pair in whole]) for index in (0, 1))
    return Point(first.mean, second.mean, first.std or 0.0, second.std or 0.0, note)


def _gather(rows: Sequence[Row], make: Callable[[Row], Sequence[Point | None]]) -> Lines:
    lines: Lines = {}
    for row in rows:
        if points := [found for found in make(row) if found is not None]:
            lines.setdefault(family(row), []).extend(points)
    return lines


def accuracy_metrics(collected: Collected) -> list[str]:
    """Names of the shares of solved problems that the results hold."""
    names = dict.fromkeys(name for row in collected.rows for name in row.metrics())
    return [name for name in names if any(part in name for part in ACCURACY)]


def accuracy_over_nfe(collected: Collected, name: str) -> Lines:
    """(network evaluations, accuracy) of the rows that have both, in the order of the evaluations."""
    lines = _gather(collected.rows, lambda row: [point(row, evaluations(name), metric(name))])
    return {label: sorted(points) for label, points in lines.items()}


def frontier(collected: Collected) -> Lines:
    """(entropy, generative perplexity): a point a row and temperature, in the order of rows and of the results."""

    def of_row(row: Row) -> list[Point | None]:
        suffixes = dict.fromkeys(found[2] or "" for name in row.metrics() if (found := _GENERATED.fullmatch(name)))
        points = []
        for suffix in suffixes:
            note = f"T = {suffix[1:]}" if suffix else _numbered_note(row)
            points.append(point(row, metric(f"gen/entropy{suffix}"), metric(f"gen/ppl{suffix}"), note))
        return points

    return _gather(collected.rows, of_row)


def _numbered_note(row: Row) -> str:
    found = _NUMBERED.search(row.name)
    return found[0].strip("_-") if found else ""


def throughput(collected: Collected) -> tuple[Lines, str, str]:
    """(lines, metric of x, metric of y): generated tokens a second against quality, or those of training against PPL.

    Quality is the first there is of: an accuracy, MAUVE, generative perplexity, validation perplexity.
    """
    for x, y in [
        *(("gen/tokens_per_second", name) for name in [*accuracy_metrics(collected), "gen/mauve", "gen/ppl"]),
        *((f"{name.rpartition('/')[0]}/tokens_per_second", name) for name in accuracy_metrics(collected)),
    ]:
        lines = _gather(collected.rows, lambda row, x=x, y=y: [point(row, metric(x), metric(y))])  # type: ignore[misc]
        if lines:
            return lines, x, y

    def trained(results: Mapping[str, Any]) -> float | None:
        value = (results.get("compute") or {}).get("tokens_per_second")
        return float(value) if value is not None and math.isfinite(value) else None

    lines = _gather(collected.rows, lambda row: [point(row, trained, metric("val/ppl"))])
    return lines, "compute/tokens_per_second", "val/ppl"
