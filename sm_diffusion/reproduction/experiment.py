"""What an experiment is and where its runs lie.

An experiment is a folder `experiments/<name>/` of Hydra files, one a row. Beside them, `experiment.yaml` says how rows
are ordered and shown, and `expected.json` holds published or earlier values (`expected.py`). A row's run lies in
`runs/<name>/<row>`, its other seeds in `runs/<name>/<row>-seed<k>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sm_diffusion.paths import EXPERIMENTS
from sm_diffusion.types import UserError

RUNS = Path("runs")
DESCRIPTION = "experiment.yaml"
_SEED_SUFFIX = re.compile(r"-seed\d+$")


@dataclass(frozen=True)
class Experiment:
    """rows: in the order they are shown. columns: metric names, empty for the standard ones. compare: pairs of rows
    whose difference is judged, empty for each row against the best. notes: lines printed below the table.
    eval_rows: those of the rows that eval.py makes, of another row's checkpoint; train.py makes the others.
    seeds: that `smd run` runs, empty for each row's own."""

    name: str
    folder: Path
    title: str
    rows: tuple[str, ...]
    columns: tuple[str, ...] = ()
    compare: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    eval_rows: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


def list_experiments(folder: Path | None = None) -> list[str]:
    """Names of the experiment folders that hold at least one row."""
    folder = EXPERIMENTS if folder is None else folder
    return sorted(path.name for path in folder.glob("*") if path.is_dir() and _row_files(path))


def _row_files(folder: Path) -> list[str]:
    """Names beginning with _ are parts that rows share."""
    return sorted(path.stem for path in folder.glob("[!_]*.yaml") if path.name != DESCRIPTION)


def load_experiment(name: str, folder: Path | None = None) -> Experiment:
    """Read `experiments/<name>/`. Rows that `experiment.yaml` does not order come last, by name, evaluations after.

    folder: of all experiments; None: the repository's.
    Raises UserError for an unknown experiment (lists them) or a wrong `experiment.yaml` (names the key).
    """
    folder = EXPERIMENTS if folder is None else folder
    known = list_experiments(folder)
    if name not in known:
        choices = f"choose one of: {', '.join(known)}" if known else f"{folder} holds none"
        raise UserError(f"{name}: no such experiment; {choices}")
    path = folder / name / DESCRIPTION
    described = _read_description(path)
    files = _row_files(folder / name)
    for row in files:
        if _SEED_SUFFIX.search(row):
            raise UserError(f"{folder / name / row}.yaml: a row's name may not end in -seed<k>; rename it")
    eval_rows = _strings(described, "eval_rows", path)
    ordered = _strings(described, "rows", path)
    for key, names in (("rows", ordered), ("eval_rows", eval_rows)):
        if unknown := [row for row in names if row not in files]:
            raise UserError(f"{path}: {key}: {', '.join(unknown)}: no such file; the rows are {', '.join(files)}")
    ordered += [row for row in files if row not in (*ordered, *eval_rows)]
    ordered += [row for row in eval_rows if row not in ordered]
    rows = tuple(ordered)
    compare = described.get("compare") or []
    for pair in compare:
        if not isinstance(pair, list) or len(pair) != 2 or any(row not in rows for row in pair):
            raise UserError(f"{path}: compare: {pair}: give pairs of rows, for example [[{rows[-1]}, {rows[0]}]]")
    return Experiment(
        name=name,
        folder=folder / name,
        title=str(described.get("title") or name),
        rows=rows,
        columns=tuple(_strings(described, "columns", path)),
        compare=tuple((first, second) for first, second in compare),
        notes=tuple(_strings(described, "notes", path)),
        eval_rows=tuple(eval_rows),
        seeds=_seeds(described, path),
    )


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    known = ("title", "rows", "eval_rows", "seeds", "columns", "compare", "notes")
    if not isinstance(described, dict) or (unknown := [key for key in described if key not in known]):
        found = ", ".join(map(str, unknown)) if isinstance(described, dict) else "not a mapping"
        raise UserError(f"{path}: {found}: the keys are {', '.join(known)}")
    return described


def _strings(described: dict[str, Any], key: str, path: Path) -> list[str]:
    value = described.get(key) or []
    value = value.strip().splitlines() if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError(f"{path}: {key}: give a list of strings")
    return value


def _seeds(described: dict[str, Any], path: Path) -> tuple[int, ...]:
    value = described.get("seeds") or []
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise UserError(f"{path}: seeds: give a list of whole numbers")
    return tuple(value)


def run_folder(experiment: str, row: str, *, seed: int | None, runs: Path = RUNS) -> Path:
    """Where a row's run lies. seed: None for the row's own seed."""
    return runs / experiment / (row if seed is None else f"{row}-seed{seed}")


def seed_folders(experiment: str, row: str, *, runs: Path = RUNS) -> list[Path]:
    """The row's folders that exist: its own seed first, then the others in order."""
    own = run_folder(experiment, row, seed=None, runs=runs)
    others = [path for path in own.parent.glob("*-seed*") if re.fullmatch(re.escape(row) + r"-seed\d+", path.name)]
    others.sort(key=lambda path: int(path.name.rpartition("-seed")[2]))
    return [path for path in (own, *others) if path.is_dir()]
