"""What `smd search` keeps of its trials, and what it says of them."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sm_diffusion.app.text import text_table
from sm_diffusion.files import read_json, write_json
from sm_diffusion.reproduction.collect import is_higher_better
from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from sm_diffusion.config.search_space import Search

SHOWN = 10
RECORDS = "search.json"
RUNNING, FINISHED, STOPPED_EARLY, FAILED = "running", "finished", "stopped early", "failed"


@dataclass
class Record:
    """One trial, as `search.json` keeps it. values: of the metric, by optimizer step. value: at the end."""

    number: int
    params: dict[str, Any]
    state: str = RUNNING
    value: float | None = None
    values: dict[int, float] = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        return max(self.values, default=-1)


def write_records(folder: Path, search: Search, metric: str, records: Sequence[Record]) -> None:
    about = {"metric": metric, "search": sorted(search.words)}
    write_json(folder / RECORDS, {**about, "trials": [asdict(record) for record in records]})


def read_records(folder: Path, search: Search, metric: str) -> list[Record]:
    """Trials of earlier calls. UserError when they are of a search over other settings."""
    path = folder / RECORDS
    if not path.is_file():
        return []
    try:
        found = read_json(path)
        trials = [
            Record(**{**item, "values": {int(k): float(v) for k, v in item["values"].items()}})
            for item in found["trials"]
        ]
        words, by = found["search"], found["metric"]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(f"{path}: not a record of a search; delete it, or choose another name") from None
    if (words, by) != (sorted(search.words), metric):
        raise UserError(f"{path}: a search by {by} over {shlex.join(words)}; choose another name, or delete the folder")
    return trials


def ranked(records: Sequence[Record], metric: str) -> list[Record]:
    """Finished trials, the best first, then those that were stopped early, by how far they came."""
    sign = -1 if is_higher_better(metric) else 1
    finished = [(sign * item.value, item) for item in records if item.state == FINISHED and item.value is not None]
    stopped = [item for item in records if item.state == STOPPED_EARLY]
    best_first = [item for _, item in sorted(finished, key=lambda pair: pair[0])]
    return best_first + sorted(stopped, key=lambda item: -item.last_step)


def summary(records: Sequence[Record], metric: str) -> str:
    """The best trials as a table, and how all of them ended."""
    keys = list(dict.fromkeys(key for record in records for key in record.params))
    lines = [["trial", metric, "last step", *keys]]
    for record in ranked(records, metric)[:SHOWN]:
        value = record.state if record.value is None else f"{record.value:.6g}"
        lines.append([str(record.number), value, str(record.last_step), *(_short(record.params[key]) for key in keys)])
    counts = Counter(record.state for record in records)
    ended = ", ".join(f"{counts[state]} {state}" for state in (FINISHED, STOPPED_EARLY, FAILED))
    return f"{text_table(lines, 1)}\n\n{len(records)} trials: {ended}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
