"""What is known of an experiment's runs: the values that collecting makes and that tables, figures and pages read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

SECTIONS = ("compute", "omegas")  # of results.json, named by a key's prefix; other keys are metrics


class Found(NamedTuple):
    """One run of a row. results: None while it is not finished."""

    row: str
    where: str
    results: dict[str, Any] | None
    stale: bool = False


@dataclass(frozen=True)
class Row:
    """Results of one row and one code version by seed, empty when it was not run.

    version: its label, empty where all results of the experiment come from one. unfinished: where runs without results
    are. places: seed -> where its results come from.
    """

    name: str
    runs: Mapping[int, dict[str, Any]]
    unfinished: Sequence[str] = ()
    version: str = ""
    places: Mapping[int, str] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.name} @{self.version}" if self.version else self.name

    def values(self, key: str) -> dict[int, float]:
        """seed -> value, of the runs that have it."""
        prefix, _, rest = key.partition("/")
        section, name = (prefix, rest) if prefix in SECTIONS else ("metrics", key)
        found = {seed: (results.get(section) or {}).get(name) for seed, results in self.runs.items()}
        return {seed: float(value) for seed, value in found.items() if value is not None}

    def metrics(self) -> list[str]:
        """Names of the metrics that any of its runs has."""
        return list(dict.fromkeys(key for results in self.runs.values() for key in results["metrics"]))


@dataclass(frozen=True)
class Collected:
    """rows: in the experiment's order, each version of a row on its own. remarks: what was odd while reading."""

    rows: list[Row]
    remarks: list[str] = field(default_factory=list)

    def of(self, name: str) -> list[Row]:
        return [row for row in self.rows if row.name == name]

    @property
    def versions(self) -> list[str]:
        return list(dict.fromkeys(row.version for row in self.rows if row.runs))
