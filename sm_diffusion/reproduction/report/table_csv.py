"""The tidy form of an experiment's table, for other programs: one line a row, metric and source, nothing rounded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sm_diffusion.evaluation.spread import spread
from sm_diffusion.reproduction.collect import Collected
from sm_diffusion.reproduction.expected import Expectation, read_expected
from sm_diffusion.reproduction.experiment import Experiment
from sm_diffusion.reproduction.report.formats import Lines
from sm_diffusion.reproduction.report.table import NOT_RUN, OMEGA_KEYS, columns_of, judged
from sm_diffusion.reproduction.stats import bootstrap_interval

HEAD = ["row", "version", "seed", "metric", "n", "mean", "std", "low", "high", "source", "expected", "tolerance"]


def tidy_lines(experiment: Experiment, collected: Collected, *, by_seed: bool) -> Lines:
    """Header and lines; `version` is empty where all results come from one, `seed` where a line is about all seeds."""
    expected = read_expected(experiment)
    shown = [*(column.key for column in columns_of(experiment, collected, expected))]
    shown += [metric for _, metric in expected.pairs()]
    keys = dict.fromkeys([*shown, *(key for key in OMEGA_KEYS if any(row.values(key) for row in collected.rows))])
    lines = [[*HEAD, "verdict"]]
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
