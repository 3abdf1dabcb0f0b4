"""An experiment of three rows in a folder, and finished runs of it that nobody trained."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import yaml

from sm_diffusion.files import write_json
from sm_diffusion.reproduction import experiment as experiments

CONFIG: dict[str, Any] = {
    "name": "toy/pretrain",
    "output_dir": "runs/toy/pretrain",
    "seed": 1,
    "init_from": None,
    "ckpt_path": None,
    "overwrite": False,
    "model": {"name": "dit_tiny", "width": 32},
    "variant": {"name": "mdlm"},
    "soft_mask": {"omega_s": 0.27, "omega_a": 3.05, "omega_b": -0.75},
    "data": {"length": 64, "cache_dir": "cache", "tokenizer": {"kind": "char"}},
    "trainer": {"max_steps": 100, "threads": None},
}


def make_experiment(folder: Path, description: dict[str, Any] | None = None) -> Path:
    """experiments/toy with three rows below `folder`; returns `folder`."""
    rows = folder / "toy"
    rows.mkdir(parents=True)
    for name in ("pretrain", "binary", "soft"):
        (rows / f"{name}.yaml").write_text(f"# @package _global_\n# The {name} row.\nname: toy/{name}\n")
    described = {"title": "Toy", "rows": ["pretrain", "binary", "soft"]} if description is None else description
    (rows / "experiment.yaml").write_text(yaml.safe_dump(described))
    return folder


def row_config(row: str, seed: int = 1, **changes: Any) -> dict[str, Any]:
    """The configuration a row of the toy experiment composes to."""
    config = copy.deepcopy(CONFIG)
    suffix = "" if seed == 1 else f"-seed{seed}"
    config |= {"name": f"toy/{row}{suffix}", "output_dir": f"runs/toy/{row}{suffix}", "seed": seed}
    if row != "pretrain":
        config["init_from"] = f"runs/toy/pretrain{suffix}/checkpoints/last.ckpt"
    if row == "soft":
        config["variant"] = {"name": "soft_masked", "p_sm": 0.8}
    return config | changes


def make_run(runs: Path, row: str, *, seed: int = 1, ppl: float = 12.0, **results: Any) -> Path:
    """A finished run folder; further keywords replace entries of results.json."""
    folder = experiments.run_folder("toy", row, seed=None if seed == 1 else seed, runs=runs)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    config = row_config(row, seed)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    nll = math.log(ppl)
    metrics = {"val/ppl": ppl, "val/nll": nll, "val/bits_per_token": nll / math.log(2), "val/bits_per_byte": 2.4}
    soft = row == "soft"
    content = {
        "name": config["name"],
        "metrics": metrics | ({"val/ppl_without_feedback": ppl + 1} if soft else {}),
        "compute": {"steps": 100, "forward_passes": 180, "flops": 2.5e12, "tokens_per_second": 18345.6},
        "omegas": {"omega_s": 0.6, "omega_a": 1.12, "omega_b": -1.96} if soft else None,
        "config": config,
        "git_commit": "0123456789abcdef",
        "seed": seed,
    }
    write_json(folder / "results.json", content | results)
    return folder


def make_metrics(run_dir: Path, version: int, lines: list[str]) -> None:
    """One metrics.csv of the CSV logger: a header and lines."""
    folder = run_dir / "metrics" / f"version_{version}"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
