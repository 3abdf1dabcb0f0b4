"""The runs of an experiment as one table, beside expected values. A cell that was not run says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sm_diffusion.app.text import csv_table, number
from sm_diffusion.evaluation.spread import spread
from sm_diffusion.reproduction.collect import collect, is_higher_better, warnings
from sm_diffusion.reproduction.collected import Collected, Row
from sm_diffusion.reproduction.expected import Expectation, Expected, read_expected
from sm_diffusion.reproduction.experiment import RUNS, Experiment
from sm_diffusion.reproduction.report.formats import RENDERERS, Document, Grid, Lines
from sm_diffusion.reproduction.stats import bootstrap_interval, difference

FORMATS = (*RENDERERS, "csv")
NOT_RUN = "not run"
ABSENT = "-"
HEADLINE = "val/ppl"
TIDY_HEAD = ["row", "version", "seed", "metric", "n", "mean", "std", "low", "high", "source", "expected", "tolerance"]
MOST_METRICS = 12  # columns of an experiment that names none and has no standard metric


# ------------------------------------------------------------------------------------------------------------ cells


@dataclass(frozen=True)
class Column:
    """key: metric name, `compute/...` or `omegas/...`; digits: significant ones, 0 for counts with a unit letter."""

    key: str
    title: str
    digits: int = 4


COLUMNS = (
    Column("val/ppl", "val PPL"),
    Column("val/bits_per_token", "bits/token"),
    Column("val/bits_per_byte", "bits/byte"),
    Column("val/ppl_without_feedback", "PPL no feedback"),
    Column("compute/forward_passes", "passes", 0),
    Column("compute/flops", "train FLOPs", 0),
    Column("compute/tokens_per_second", "tokens/s", 0),
)
KNOWN = {column.key: column for column in COLUMNS}
OMEGAS = "omega s, a, b"
FIRST_COST = "passes"
HOURS = "planned GPU-h"
OMEGA_KEYS = ("omegas/omega_s", "omegas/omega_a", "omegas/omega_b")


def column_of(key: str) -> Column:
    return KNOWN.get(key, Column(key, key))


def summary_cell(values: Sequence[float], digits: int = 4) -> str:
    """mean; over at least two runs mean ± standard deviation [95 % interval]."""
    found = spread(values)
    mean = number(found.mean, digits)
    if found.std is None or found.std == 0 or not math.isfinite(found.std):
        return mean
    interval = bootstrap_interval(values)
    assert interval is not None
    if digits == 0:
        shown = [number(value, 0) for value in (found.std, *interval)]
    else:
        decimals = len(mean.partition(".")[2])
        shown = [f"{value:.{decimals}f}" for value in (found.std, *interval)]
    return f"{mean} ± {shown[0]} [{shown[1]}, {shown[2]}]"


def cell(row: Row, column: Column) -> str:
    """What a row shows in a column: `not run`, `-` where its runs have no such number, or the number."""
    if not row.runs:
        return NOT_RUN
    values = row.values(column.key)
    return summary_cell(list(values.values()), column.digits) if values else ABSENT


def omega_cell(row: Row) -> str:
    """Mean final omegas of the runs."""
    if not row.runs:
        return NOT_RUN
    found = [list(row.values(key).values()) for key in OMEGA_KEYS]
    return ", ".join(number(spread(values).mean, 3) for values in found) if all(found) else ABSENT


def columns_of(experiment: Experiment, collected: Collected, expected: Expected) -> list[Column]:
    """The experiment's columns, or the standard ones that any run has and those with an expected value; with neither,
    the first metrics of the results. All standard ones while nothing was run."""
    if experiment.columns:
        return [column_of(key) for key in experiment.columns]
    rows = collected.rows
    extra = [metric for _, metric in expected.pairs() if metric not in KNOWN]
    if not any(row.runs for row in rows):
        return [*COLUMNS, *map(column_of, dict.fromkeys(extra))]
    standard = [column for column in COLUMNS if any(row.values(column.key) for row in rows)]
    own = dict.fromkeys(metric for row in rows for metric in row.metrics())
    without_standard = any(row.runs and not any(row.values(column.key) for column in standard) for row in rows)
    if without_standard:
        extra += [metric for metric in own if metric not in KNOWN and not metric.startswith("val/")][:MOST_METRICS]
    return [*standard, *map(column_of, dict.fromkeys(extra))]


def main_table(collected: Collected, columns: Sequence[Column], expected: Expected, *, by_seed: bool) -> Lines:
    """Header and one line a row, or a run. Last, where there are such: final omegas, planned GPU-hours."""
    omegas = any(run.get("omegas") for row in collected.rows for run in row.runs.values())
    head = ["row", "seed" if by_seed else "n", *(column.title for column in columns)]
    lines = [[*head, *([OMEGAS] if omegas else []), *([HOURS] if expected.gpu_hours else [])]]
    for row in collected.rows:
        split = by_seed and row.runs
        parts = [Row(row.name, {k: row.runs[k]}, (), row.version) for k in sorted(row.runs)] if split else [row]
        for part in parts:
            count = str(next(iter(part.runs), ABSENT)) if by_seed else str(len(part.runs))
            line = [row.label, count, *(cell(part, column) for column in columns)]
            line += [omega_cell(part)] if omegas else []
            hours = expected.gpu_hours.get(row.name)
            line += [ABSENT if hours is None else number(hours, 3)] if expected.gpu_hours else []
            lines.append(line)
    return lines


# --------------------------------------------------------------------------------------------------------- expected


def expected_table(collected: Collected, expected: Expected) -> Lines:
    """Ours beside each source's value in a column of its own; empty when nothing is expected."""
    if not expected.entries:
        return []
    used = [source for source in expected.sources if any(entry.source == source for entry in expected.entries)]
    lines = [["row", "metric", "n", "ours", *used]]
    for name, metric in expected.pairs():
        for row in collected.of(name):
            values = list(row.values(metric).values())
            ours = summary_cell(values) if values else (ABSENT if row.runs else NOT_RUN)
            cells = [_source_cell(values, expected.find(name, metric, source)) for source in used]
            lines.append([row.label, column_of(metric).title, str(len(values)), ours, *cells])
    return lines


def _source_cell(values: Sequence[float], entry: Expectation | None) -> str:
    if entry is None:
        return ABSENT
    shown = number(entry.value)
    return f"{shown} (ours {judged(values, entry)})" if values else shown


def judged(values: Sequence[float], entry: Expectation) -> str:
    """Our mean minus the expected value, and whether that lies within the tolerance."""
    gap = spread(values).mean - entry.value
    if math.isnan(gap):
        return "NaN"
    if entry.tolerance is None:
        return f"{gap:+.4g}"
    # A gap of exactly the tolerance counts, whatever the last bit says.
    inside = abs(gap) <= entry.tolerance * (1 + 1e-9)
    return f"{gap:+.4g}: {'within' if inside else 'OUTSIDE'} {entry.tolerance:g}"


def source_remarks(expected: Expected) -> list[str]:
    lines = [f"source {label}: {text}" for label, text in expected.sources.items()]
    notes = [(entry, entry.note) for entry in expected.entries if entry.note]
    lines += [f"note on {entry.row}, {entry.metric}, {entry.source}: {note}" for entry, note in notes]
    lines += [f"hardware: {expected.hardware}"] if expected.hardware else []
    lines += [f"planned GPU-hours: {expected.cost_command}"] if expected.gpu_hours and expected.cost_command else []
    return lines


# --------------------------------------------------------------------------------------------------------- verdicts


def verdicts(experiment: Experiment, collected: Collected, metric: str) -> list[str]:
    """Differences in one metric, paired by seed, each beside its interval over seeds; within one code version only."""
    title = column_of(metric).title
    lines = []
    for version in collected.versions or [""]:
        rows = {row.name: row for row in collected.rows if row.version in (version, "")}
        values = {name: row.values(metric) for name, row in rows.items()}
        for first, second in experiment.compare or _against_best(values, metric):
            if not values.get(first) or not values.get(second):
                where = f" at {version}" if version else ""
                has_runs = all(name in rows and rows[name].runs for name in (first, second))
                lines.append(f"{first} - {second}: {f'no {title}' if has_runs else NOT_RUN}{where}")
            else:
                words = difference(values[first], values[second]).verdict()
                lines.append(f"{rows[first].label} - {rows[second].label}: {title} {words}")
    return lines


def _against_best(values: Mapping[str, Mapping[int, float]], metric: str) -> list[tuple[str, str]]:
    """Each row that was run paired with the one of the best mean; NaN is never the best."""
    means = {name: spread(list(found.values())).mean for name, found in values.items() if found}
    sign = -1 if is_higher_better(metric) else 1
    known = [name for name in means if not math.isnan(means[name])]
    best = min(known, key=lambda name: sign * means[name], default=None)
    return [(name, best) for name in means if best is not None and name != best]


# -------------------------------------------------------------------------------------------------------------- CSV


def tidy_lines(experiment: Experiment, collected: Collected, *, by_seed: bool) -> Lines:
    """Header and lines; `version` is empty where all results come from one, `seed` where a line is about all seeds."""
    expected = read_expected(experiment)
    shown = [*(column.key for column in columns_of(experiment, collected, expected))]
    shown += [metric for _, metric in expected.pairs()]
    keys = dict.fromkeys([*shown, *(key for key in OMEGA_KEYS if any(row.values(key) for row in collected.rows))])
    lines = [[*TIDY_HEAD, "verdict"]]
    for row in collected.rows:
        for key in keys:
            values = row.values(key)
            groups = {str(seed): [values[seed]] for seed in sorted(values)} if by_seed else {"": list(values.values())}
            claims = [entry for entry in expected.entries if (entry.row, entry.metric) == (row.name, key)]
            entries: Sequence[Expectation | None] = claims or [None]
            for seed, group in (groups or {"": []}).items():
                head = [row.name, row.version, seed, key, str(len(group)), *_ours(group, bool(row.runs))]
                for entry in entries:
                    theirs = [entry.source, repr(entry.value), _text(entry.tolerance)] if entry else ["", "", ""]
                    lines.append([*head, *theirs, judged(group, entry) if entry and group else ""])
    return lines


def _ours(values: list[float], was_run: bool) -> list[str]:
    if not values:
        return ["" if was_run else NOT_RUN, "", "", ""]
    found, interval = spread(values), bootstrap_interval(values)
    low, high = (repr(end) for end in interval) if interval else ("", "")
    return [repr(found.mean), _text(found.std), low, high]


def _text(value: Any) -> str:
    return "" if value is None else str(value)


# --------------------------------------------------------------------------------------------------------- printing


def build_document(experiment: Experiment, collected: Collected, *, by_seed: bool = False) -> Document:
    """Everything that is printed, before it has a format."""
    expected = read_expected(experiment)
    columns = columns_of(experiment, collected, expected)
    keys = list(dict.fromkeys([*(column.key for column in columns), *(metric for _, metric in expected.pairs())]))
    headline = columns[0].key if columns else HEADLINE
    grids = [Grid(main_table(collected, columns, expected, by_seed=by_seed), 2, break_before=FIRST_COST)]
    if lines := expected_table(collected, expected):
        grids.append(Grid(lines, 2, caption="Ours beside each source:"))
    remarks = [*verdicts(experiment, collected, headline), *warnings(experiment, collected, keys)]
    if any(len(row.runs) > 1 for row in collected.rows):
        remarks.append(
            "± is the standard deviation over seeds, [ ] a 95 % bootstrap interval of the mean; with 2 or 3 seeds that "
            "is their range, which holds the true mean with a chance of 1/2 or 3/4 only"
        )
    return Document(experiment.title, grids, [*remarks, *source_remarks(expected), *experiment.notes])


def report(experiment: Experiment, *, runs: str | Path = RUNS, style: str = "text", by_seed: bool = False) -> str:
    """The whole table in one of FORMATS. In CSV one line a row, metric and source, nothing rounded."""
    collected = collect(experiment, runs)
    if style == "csv":
        return csv_table(tidy_lines(experiment, collected, by_seed=by_seed))
    return RENDERERS[style](build_document(experiment, collected, by_seed=by_seed))
