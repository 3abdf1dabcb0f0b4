"""Texts and trajectories that the run folders of an experiment hold, and new ones on request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sm_diffusion.files import parse_json, read_json, write_json
from sm_diffusion.reproduction.collected import Row
from sm_diffusion.reproduction.report.trajectory_page import read_recording
from sm_diffusion.training.run_folder import RunFolder

RECORDING = "trajectory.json"
MOST_BYTES = 8 * 2**20  # of one recording inside the page
MOST_CHARACTERS = 1_200  # of one text
Texts = list[tuple[str, str]]  # (what it is, text)


def own_folder(row: Row) -> Path | None:
    """The folder of the row's first seed, where it is on this machine."""
    places = [Path(row.places[seed]) for seed in row.places]
    return places[0] if places and places[0].is_dir() else None


def checkpoint_of(folder: Path) -> Path | None:
    """The file to sample from; sharded checkpoints are folders and are left out."""
    path = RunFolder(folder).last
    return path if path.is_file() else None


def record(folder: Path, checkpoint: Path, *, num_texts: int) -> Path:
    """Denoise some texts with the default sampler and seed 1, as `smd sample --json` does; kept in the run folder."""
    from sm_diffusion.app.commands.recording import trajectory_json
    from sm_diffusion.app.model import named_sampler
    from sm_diffusion.app.open_model import load

    model, settings = load(checkpoint), named_sampler("ancestral")
    rows = model.rows(None, num_samples=num_texts)
    recorded = list(model.run_sampler(rows, model.sampler(settings), seed=1, record=True))
    path = folder / RECORDING
    write_json(path, trajectory_json(model, settings, recorded, seed=1, checkpoint=checkpoint))
    return path


def recordings(rows: Sequence[Row], *, num_texts: int) -> tuple[list[tuple[str, dict[str, Any]]], list[str]]:
    """((row, recording) of each row that has one, remarks). num_texts > 0: make those that are missing."""
    found, remarks = [], []
    for row in rows:
        folder = own_folder(row)
        if folder is None or not row.runs:
            continue
        path = folder / RECORDING
        checkpoint = checkpoint_of(folder)
        if not path.is_file() and num_texts and checkpoint is not None:
            path = record(folder, checkpoint, num_texts=num_texts)
        if not path.is_file():
            continue
        if path.stat().st_size > MOST_BYTES:
            remarks.append(f"{path}: too large for this page; open it with: smd view {path}")
            continue
        found.append((row.label, read_recording(path)))
    return found, remarks


def generated_texts(row: Row, count: int = 2) -> Texts:
    """The first samples that an evaluation of the row judged."""
    texts: Texts = []
    for results in row.runs.values():
        for key, place in (results.get("protocol") or {}).items():
            if not key.startswith("samples") or not isinstance(place, str) or not Path(place).is_dir():
                continue
            suffix = f", temperature {key.partition('@')[2]}" if "@" in key else ""
            texts += [(f"{row.label}{suffix}, sample {index}", text) for index, text in _first(Path(place), count)]
        if texts:
            break
    return texts


def _first(folder: Path, count: int) -> list[tuple[int, str]]:
    """(index, text) of the lowest indices; a torn last line does not count."""
    found: dict[int, str] = {}
    for path in sorted(folder.glob("part-*.jsonl")):
        for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
            sample = parse_json(line, path)
            found[int(sample["index"])] = str(sample["text"])
    return sorted(found.items())[:count]


def shortened(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]} ... ({len(text):,} characters)"


def environment_of(folder: Path | None, results: dict[str, Any]) -> dict[str, Any]:
    """python, versions and machine of a run: of its results, or else of environment.json."""
    keys = ("python", "versions", "machine")
    if all(results.get(key) for key in keys):
        return {key: results[key] for key in keys}
    path = RunFolder(folder).environment if folder is not None else None
    content = read_json(path) if path is not None and path.is_file() else {}
    return {key: results.get(key) or content.get(key) for key in keys}
