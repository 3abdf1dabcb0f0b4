"""`smd table`: the runs of an experiment as one table, beside expected values. A cell that was not run says so."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sm_diffusion.evaluation.results import Spread, paired_difference, read_results, spread
from sm_diffusion.tools import (
    RUNS,
    Experiment,
    csv_table,
    expected_values,
    load_experiment,
    markdown_table,
    number,
    seed_folders,
    text_table,
    wrap_text,
)

HELP = "print the results of an experiment beside expected values"
EXAMPLES = """
smd table quickstart
smd table quickstart --seeds
smd table quickstart --format markdown
smd table quickstart --format csv > quickstart.csv
"""
NOT_RUN = "not run"
ABSENT = "-"
VERDICT_METRIC = "val/ppl"
# A run's own settings, which may differ between the seeds of one row.
PER_SEED_SETTINGS = ("name", "output_dir", "seed", "init_from", "ckpt_path", "overwrite")


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
OMEGAS = "omega s, a, b"
FIRST_COST = "passes"
OMEGA_KEYS = ("omegas/omega_s", "omegas/omega_a", "omegas/omega_b")
SECTIONS = ("compute", "omegas")  # of results.json, named by a key's prefix; other keys are metrics


@dataclass(frozen=True)
class Row:
    """A row's results by seed, empty when it was not run. unfinished: its folders without results."""

    name: str
    runs: Mapping[int, dict[str, Any]]
    unfinished: Sequence[Path] = ()

    def values(self, key: str) -> dict[int, float]:
        """seed -> value, of the runs that have it."""
        prefix, _, rest = key.partition("/")
        section, name = (prefix, rest) if prefix in SECTIONS else ("metrics", key)
        found = {seed: (results.get(section) or {}).get(name) for seed, results in self.runs.items()}
        return {seed: float(value) for seed, value in found.items() if value is not None}


def collect(experiment: Experiment, runs: Path = RUNS) -> list[Row]:
    """Read the results of every row and seed."""
    rows = []
    for name in experiment.rows:
        found: dict[int, dict[str, Any]] = {}
        unfinished = []
        for folder in seed_folders(experiment.name, name, runs=runs):
            if (folder / "results.json").is_file():
                results = read_results(folder / "results.json")
                found[int(results["seed"])] = results
            else:
                unfinished.append(folder)
        rows.append(Row(name, found, unfinished))
    return rows


def with_spread(values: Spread, digits: int) -> str:
    """mean, or mean ± std over at least two runs."""
    mean = number(values.mean, digits)
    if values.std is None or (digits == 0 and values.std == 0):
        return mean
    if digits == 0 or not math.isfinite(values.std) or not math.isfinite(values.mean):
        return f"{mean} ± {number(values.std, 0)}"
    decimals = len(mean.partition(".")[2])
    return f"{mean} ± {values.std:.{decimals}f}"


def cell(row: Row, column: Column) -> str:
    """What a row shows in a column: `not run`, `-` where its runs have no such number, or the number."""
    if not row.runs:
        return NOT_RUN
    values = row.values(column.key)
    return with_spread(spread(list(values.values())), column.digits) if values else ABSENT


def omega_cell(row: Row) -> str:
    """Mean final omegas of the runs."""
    if not row.runs:
        return NOT_RUN
    found = [list(row.values(key).values()) for key in OMEGA_KEYS]
    return ", ".join(number(spread(values).mean, 3) for values in found) if all(found) else ABSENT


def columns_of(experiment: Experiment, rows: Sequence[Row]) -> list[Column]:
    """The experiment's columns, or the standard ones that any run has; all of them while nothing was run."""
    known = {column.key: column for column in COLUMNS}
    if experiment.columns:
        return [known.get(key, Column(key, key)) for key in experiment.columns]
    if not any(row.runs for row in rows):
        return list(COLUMNS)
    return [column for column in COLUMNS if any(row.values(column.key) for row in rows)]


def main_table(experiment: Experiment, rows: Sequence[Row], *, by_seed: bool) -> list[list[str]]:
    """Header and one line a row, or a run. The last column, if any run has omegas, shows their final values."""
    columns = columns_of(experiment, rows)
    omegas = any(results.get("omegas") for row in rows for results in row.runs.values())
    head = "seed" if by_seed else "n"
    lines = [["row", head, *(column.title for column in columns), *([OMEGAS] if omegas else [])]]
    for row in rows:
        parts = [Row(row.name, {seed: row.runs[seed]}) for seed in sorted(row.runs)] if by_seed and row.runs else [row]
        for part in parts:
            count = str(next(iter(part.runs), ABSENT)) if by_seed else str(len(part.runs))
            cells = [cell(part, column) for column in columns]
            lines.append([row.name, count, *cells, *([omega_cell(part)] if omegas else [])])
    return lines


# --------------------------------------------------------------------------------------------------------- expected


def expected_table(experiment: Experiment, rows: Sequence[Row]) -> list[list[str]]:
    """Ours beside each expected value with its source; empty when nothing is expected."""
    by_name = {row.name: row for row in rows}
    titles = {column.key: column.title for column in COLUMNS}
    lines = []
    for name, metric, entry in expected_values(experiment):
        values = by_name[name].values(metric)
        ours = spread(list(values.values())) if values else None
        lines.append(
            [
                name,
                titles.get(metric, metric),
                with_spread(ours, 4) if ours else (ABSENT if by_name[name].runs else NOT_RUN),
                number(float(entry["value"])),
                _judged(ours, entry),
                str(entry["source"]),
            ]
        )
    return [["row", "metric", "ours", "expected", "difference", "source"], *lines] if lines else []


def _judged(ours: Spread | None, entry: Mapping[str, Any]) -> str:
    if ours is None:
        return NOT_RUN
    difference, tolerance = ours.mean - float(entry["value"]), entry.get("tolerance")
    if math.isnan(difference):
        return "NaN"
    if tolerance is None:
        return f"{difference:+.4g}"
    return f"{difference:+.4g} ({'within' if abs(difference) <= tolerance else 'OUTSIDE'} {tolerance:g})"


# --------------------------------------------------------------------------------------------------------- verdicts


def verdicts(experiment: Experiment, rows: Sequence[Row]) -> list[str]:
    """Differences in perplexity, paired by seed, each beside the spread over seeds; then what to be wary of."""
    by_name = {row.name: row for row in rows}
    values = {name: row.values(VERDICT_METRIC) for name, row in by_name.items()}
    pairs = list(experiment.compare) or _against_best(values)
    lines = []
    for first, second in pairs:
        if not values[first] or not values[second]:
            lines.append(f"{first} - {second}: {NOT_RUN}")
        else:
            lines.append(f"{first} - {second}: {_verdict(values[first], values[second])}")
    return lines


def _against_best(values: Mapping[str, Mapping[int, float]]) -> list[tuple[str, str]]:
    """Each row that was run paired with the one of lowest mean; NaN is never the lowest."""
    means = {name: spread(list(found.values())).mean for name, found in values.items() if found}
    best = min((name for name in means if not math.isnan(means[name])), key=means.__getitem__, default=None)
    return [(name, best) for name in means if best is not None and name != best]


def _verdict(first: Mapping[int, float], second: Mapping[int, float]) -> str:
    paired = paired_difference(first, second)
    if paired is None:
        return "val PPL cannot be compared: the rows share no seed"
    text = f"val PPL {paired.mean:+.4g}"
    if math.isnan(paired.mean):
        return "val PPL NaN"
    if paired.std is None:
        return f"{text}, one seed: its spread is not known"
    size = "smaller" if abs(paired.mean) <= paired.std else "larger"
    return f"{text} ± {paired.std:.2g} over {paired.n} paired seeds: {size} than the seed spread"


def warnings(experiment: Experiment, rows: Sequence[Row]) -> list[str]:
    """What makes the numbers less comparable than they look, and what was not finished."""
    results = [result for row in rows for result in row.runs.values()]
    commits = sorted({str(result.get("git_commit"))[:10] for result in results})
    lines = []
    if len(commits) > 1:
        lines.append(f"warning: these results come from {len(commits)} code versions: {', '.join(commits)}")
    for row in rows:
        settings = [_shared_settings(result.get("config") or {}) for result in row.runs.values()]
        if any(other != settings[0] for other in settings[1:]):
            lines.append(f"warning: {row.name}: its seeds were run with different settings; their mean means little")
        bad = [key for key in ("val/ppl", "val/nll") if any(math.isnan(v) for v in row.values(key).values())]
        if bad:
            lines.append(f"warning: {row.name}: {', '.join(bad)} is NaN in at least one run")
        for folder in row.unfinished:
            lines.append(f"unfinished: {folder}; continue with: smd run {experiment.name}")
    return lines


def _shared_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in PER_SEED_SETTINGS}


# --------------------------------------------------------------------------------------------------------- printing


def report(experiment: Experiment, *, runs: Path = RUNS, style: str = "text", by_seed: bool = False) -> str:
    """The whole table as text, Markdown or CSV. In CSV one line a row and metric, nothing rounded."""
    rows = collect(experiment, runs)
    if style == "csv":
        return csv_table(_tidy(experiment, rows, by_seed=by_seed))
    table, expected = main_table(experiment, rows, by_seed=by_seed), expected_table(experiment, rows)
    lines = [*verdicts(experiment, rows), *warnings(experiment, rows), *experiment.notes]
    if style == "markdown":
        parts = [f"### {experiment.title}", markdown_table(table, 2), markdown_table(expected, 2) if expected else ""]
        parts.append("\n".join(f"- {line}" for line in lines))
    else:
        wrapped = "\n".join(part for line in lines for part in wrap_text(line))
        parts = [experiment.title, text_table(table, 2, break_before=FIRST_COST)]
        parts += [text_table(expected, 2) if expected else "", wrapped]
    return "\n\n".join(part for part in parts if part)


def _tidy(experiment: Experiment, rows: Sequence[Row], *, by_seed: bool) -> list[list[str]]:
    expected: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for name, metric, entry in expected_values(experiment):
        expected.setdefault((name, metric), []).append(entry)
    shown = [*(column.key for column in columns_of(experiment, rows)), *(key for _, key in expected)]
    keys = dict.fromkeys([*shown, *(key for key in OMEGA_KEYS if any(row.values(key) for row in rows))])
    lines = [["row", "seed", "metric", "n", "mean", "std", "expected", "tolerance", "source"]]
    for row in rows:
        for key in keys:
            values = row.values(key)
            groups = {str(seed): [values[seed]] for seed in sorted(values)} if by_seed else {"": list(values.values())}
            for seed, group in (groups or {"": []}).items():
                found = spread(group) if group else None
                head = [row.name, seed, key, str(len(group))]
                ours = ["" if row.runs else NOT_RUN, ""] if found is None else [repr(found.mean), _or_empty(found.std)]
                for entry in expected.get((row.name, key), [{}]):
                    lines.append([*head, *ours, *(_or_empty(entry.get(k)) for k in ("value", "tolerance", "source"))])
    return lines


def _or_empty(value: Any) -> str:
    return "" if value is None else str(value)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", help="a folder of experiments/")
    parser.add_argument("--format", choices=("text", "markdown", "csv"), default="text", help="default: text")
    parser.add_argument("--seeds", action="store_true", help="one line a run instead of mean ± standard deviation")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR", help=f"where runs lie, default {RUNS}/")


def run(args: argparse.Namespace) -> int:
    experiment = load_experiment(args.experiment)
    print(report(experiment, runs=args.runs, style=args.format, by_seed=args.seeds).rstrip("\n"))
    return 0
