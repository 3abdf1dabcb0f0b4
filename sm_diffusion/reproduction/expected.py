"""`expected.json` of an experiment: published or earlier values, where each comes from, and what a row costs.

    {
      "sources": {"notes": "what this source is, in one line"},
      "expected": [{"row": "sm", "metric": "val/ppl", "value": 21.63, "tolerance": 0.3, "source": "notes"}],
      "hardware": "8 x A100 80 GB",
      "gpu_hours": {"sm": 123.0},
      "cost_command": "smd plan experiments=owt_continuation/sm"
    }

One row and metric may have a value from each source. `tolerance` and `note` may be left out, and so may every key.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sm_diffusion.files import read_json
from sm_diffusion.reproduction.experiment import Experiment
from sm_diffusion.types import UserError

EXPECTED = "expected.json"
_KEYS = ("sources", "expected", "hardware", "gpu_hours", "cost_command")
_ENTRY_KEYS = ("row", "metric", "value", "tolerance", "source", "note")
_FORM = '{"row": ..., "metric": ..., "value": number, "tolerance": number, "source": a key of "sources"}'


@dataclass(frozen=True)
class Expectation:
    """tolerance: the largest difference that still counts as the same; None: not judged."""

    row: str
    metric: str
    value: float
    source: str
    tolerance: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Expected:
    """sources: label -> what it is, in the order of the columns. gpu_hours: planned, by row."""

    sources: Mapping[str, str] = field(default_factory=dict)
    entries: tuple[Expectation, ...] = ()
    hardware: str = ""
    gpu_hours: Mapping[str, float] = field(default_factory=dict)
    cost_command: str = ""

    def find(self, row: str, metric: str, source: str) -> Expectation | None:
        wanted = (row, metric, source)
        return next((entry for entry in self.entries if (entry.row, entry.metric, entry.source) == wanted), None)

    def pairs(self) -> list[tuple[str, str]]:
        """(row, metric) for which there is at least one value, in the order of the file."""
        return list(dict.fromkeys((entry.row, entry.metric) for entry in self.entries))


def read_expected(experiment: Experiment) -> Expected:
    """The experiment's expected values; empty without the file. UserError names file, entry and what to write."""
    path = experiment.folder / EXPECTED
    if not path.is_file():
        return Expected()
    content = read_json(path)
    if not isinstance(content, dict) or (unknown := [key for key in content if key not in _KEYS]):
        found = ", ".join(unknown) if isinstance(content, dict) else "not an object"
        raise UserError(f"{path}: {found}: the keys are {', '.join(_KEYS)}")
    sources = content.get("sources", {})
    if not isinstance(sources, dict) or not all(isinstance(text, str) for text in sources.values()):
        raise UserError(f'{path}: sources: give {{"label": "what it is, in one line"}}')
    entries = content.get("expected", [])
    if not isinstance(entries, list):
        raise UserError(f"{path}: expected: give a list of {_FORM}")
    hours = content.get("gpu_hours", {})
    if not isinstance(hours, dict) or not all(_is_number(value) for value in hours.values()):
        raise UserError(f'{path}: gpu_hours: give {{"row": hours}}')
    _check_rows(path, "gpu_hours", list(hours), experiment)
    read = tuple(_entry(path, index, entry, sources) for index, entry in enumerate(entries))
    _check_rows(path, "expected", [entry.row for entry in read], experiment)
    cells = [(entry.row, entry.metric, entry.source) for entry in read]
    if doubled := [cell for cell in cells if cells.count(cell) > 1]:
        raise UserError(f"{path}: expected: two values of {' '.join(doubled[0])}; keep one, or name another source")
    return Expected(
        sources=sources,
        entries=read,
        hardware=str(content.get("hardware", "")),
        gpu_hours={row: float(value) for row, value in hours.items()},
        cost_command=str(content.get("cost_command", "")),
    )


def _entry(path: Path, index: int, entry: Any, sources: Mapping[str, str]) -> Expectation:
    where = f"{path}: expected[{index}]"
    if not isinstance(entry, dict):
        raise UserError(f"{where}: {entry!r}: give {_FORM}")
    if unknown := [key for key in entry if key not in _ENTRY_KEYS]:
        raise UserError(f"{where}: {', '.join(unknown)}: the keys are {', '.join(_ENTRY_KEYS)}")
    for key in ("row", "metric", "source"):
        if not isinstance(entry.get(key), str):
            raise UserError(f"{where}: {key}: {entry.get(key)!r}: give {_FORM}")
    if entry["source"] not in sources:
        known = ", ".join(sources) or "none yet"
        raise UserError(f'{where}: source: {entry["source"]}: not described in "sources" ({known}); add a line there')
    tolerance = entry.get("tolerance")
    if not _is_number(entry.get("value")):
        raise UserError(f"{where}: value: {entry.get('value')!r}: give a finite number")
    if tolerance is not None and not (_is_number(tolerance) and tolerance >= 0):
        raise UserError(f"{where}: tolerance: {tolerance!r}: give a number >= 0, or leave it out")
    return Expectation(
        row=entry["row"],
        metric=entry["metric"],
        value=float(entry["value"]),
        source=entry["source"],
        tolerance=None if tolerance is None else float(tolerance),
        note=str(entry.get("note", "")),
    )


def _check_rows(path: Path, key: str, names: list[str], experiment: Experiment) -> None:
    if unknown := [name for name in names if name not in experiment.rows]:
        raise UserError(f"{path}: {key}: {unknown[0]}: no such row; the rows are {', '.join(experiment.rows)}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
