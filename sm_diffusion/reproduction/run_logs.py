"""What a run folder tells while it runs and afterwards: logged values, configuration, omegas, vocabulary."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml

from sm_diffusion.diffusion.omegas import Omegas
from sm_diffusion.evaluation.results import read_results
from sm_diffusion.training.run_folder import RunFolder
from sm_diffusion.types import UserError

UNKNOWN_VOCABULARY = 50_258
Series = dict[str, tuple[list[int], list[float]]]  # name -> (optimizer steps, values)


def read_metrics(run_dir: Path) -> Series:
    """Logged values by name: (steps, values). Where a resumed run repeats steps, the later version is taken."""
    merged: Series = {}
    folders = [path for path in RunFolder(run_dir).metrics.glob("version_*") if path.name[8:].isdigit()]
    for folder in sorted(folders, key=lambda path: int(path.name[8:])):
        if not (folder / "metrics.csv").is_file():
            continue
        for name, (steps, values) in _read_csv(folder / "metrics.csv").items():
            old_steps, old_values = merged.get(name, ([], []))
            kept = [index for index, step in enumerate(old_steps) if step < steps[0]]
            merged[name] = ([old_steps[i] for i in kept] + steps, [old_values[i] for i in kept] + values)
    return merged


def _read_csv(path: Path) -> Series:
    series: Series = {}
    with path.open(newline="", encoding="utf-8") as file:
        for number, line in enumerate(csv.DictReader(file), start=2):
            try:
                step = int(line["step"])
                found = {name: float(text) for name, text in line.items() if text and name not in ("step", "epoch")}
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{path}: line {number} is not a line of metrics; delete it or the file") from None
            for name, value in found.items():
                steps, values = series.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return series


def read_config(run_dir: Path) -> dict[str, Any]:
    """The run's resolved configuration, from config.yaml or else results.json."""
    path = RunFolder(run_dir).config
    if path.is_file():
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError:
            raise UserError(f"{path}: not a YAML file") from None
    else:
        config = read_results(RunFolder(run_dir).results).get("config")
    if not isinstance(config, dict):
        raise UserError(f"{run_dir}: holds no configuration; give a folder that train.py wrote")
    return config


def run_omegas(run_dir: Path) -> dict[str, Omegas]:
    """{"start": ..., "learned": ...} of a soft-masked run; empty for another; without "learned" before any log."""
    config = read_config(run_dir)
    if (config.get("variant") or {}).get("name") != "soft_masked":  # an evaluation has no variant
        return {}
    start = config["soft_mask"]
    found = {"start": Omegas(start["omega_s"], start["omega_a"], start["omega_b"])}
    path = RunFolder(run_dir).results
    final = read_results(path).get("omegas") if path.is_file() else None
    if final:
        found["learned"] = Omegas(final["omega_s"], final["omega_a"], final["omega_b"])
    else:
        metrics = read_metrics(run_dir)
        logged = [metrics[name][1][-1] for name in ("omega/s", "omega/a", "omega/b") if name in metrics]
        if len(logged) == 3:
            found["learned"] = Omegas(*logged)
    return found


def run_vocabulary(run_dir: Path) -> int:
    """V of the run's tokenizer, for the axis of entropies."""
    from sm_diffusion.data.settings import TokenizerSettings
    from sm_diffusion.data.tokenizers.sizes import vocabulary

    try:
        return vocabulary(TokenizerSettings(**read_config(run_dir)["data"]["tokenizer"]))
    except UserError:
        return UNKNOWN_VOCABULARY
