"""A stand-in for train.py and eval.py, which leaves what they leave and trains nothing."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from sm_diffusion.files import read_json, write_json
from tests.helpers.experiments import row_config

RUNS = Path("runs")


def compose(program: str, overrides: Sequence[str]) -> dict[str, Any]:
    """What Hydra would make of the toy experiment; `trainer.max_steps` is the only free setting of training."""
    given = dict(word.split("=", 1) for word in overrides)
    row = given["experiments"].split("/")[1]
    if program == "eval":
        return {
            "checkpoint": given.get("checkpoint", "runs/toy/soft/checkpoints/last.ckpt"),
            "output_dir": given.get("output_dir", f"runs/toy/{row}"),
            "seed": int(given.get("seed", 1)),
            "weights": given.get("weights", "ema"),
        }
    config = row_config(row)
    if "init_from" in given:
        config["init_from"] = given["init_from"]
    if "logger.wandb" in given:
        config["logger"] = {"wandb": given["logger.wandb"], "group": given.get("logger.group")}
    for key in ("name", "output_dir", "init_from"):
        config[key] = given.get(key, config[key])
    config["output_dir"] = given.get("output_dir", f"runs/{config['name']}")
    config["seed"] = int(given.get("seed", config["seed"]))
    config["trainer"]["max_steps"] = int(given.get("trainer.max_steps", 100))
    return config


class Trainer:
    """Stands for train.py and eval.py: records its calls and leaves what a run leaves, or fails or stops half-way."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.trained = 0
        self.fails_at: str | None = None
        self.interrupted_at: str | None = None

    def __call__(self, command: Sequence[str]) -> int:
        assert command[0] == sys.executable
        words = list(command[2:])
        self.calls.append(words)
        if command[1].endswith("eval.py"):
            return self.evaluate(words)
        assert command[1].endswith("train.py")
        config = compose("train", [word for word in words if not word.startswith(("ckpt_path", "overwrite"))])
        folder = Path(config["output_dir"])
        if config["init_from"] is not None:
            assert Path(config["init_from"]).is_file(), "started before what it starts from"
        if self.fails_at == folder.name:
            return 3
        if "overwrite=true" in words:
            shutil.rmtree(folder)
        self.trained += 1
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights")
        if self.interrupted_at == folder.name:
            raise KeyboardInterrupt
        results = {"metrics": {"val/ppl": 12.0}, "compute": {}, "omegas": None, "config": config}
        checkpoint = {"checkpoint_sha256": f"weights {self.trained}"}
        write_json(folder / "results.json", {"seed": config["seed"], "git_commit": "abc", **results, **checkpoint})
        return 0

    def evaluate(self, words: list[str]) -> int:
        config = compose("eval", words)
        folder, start = Path(config["output_dir"]), Path(config["checkpoint"])
        assert start.is_file(), "started before what it starts from"
        folder.mkdir(parents=True, exist_ok=True)
        if self.interrupted_at == folder.name:
            raise KeyboardInterrupt
        made_from = read_json(start.parents[1] / "results.json").get("checkpoint_sha256")
        about = {"seed": config["seed"], "config": config, "checkpoint_sha256": made_from}
        write_json(folder / "results.json", {"metrics": {"gen/entropy": 2.0}, **about})
        return 0


def rows_of(trainer: Trainer) -> list[str]:
    return [words[0].removeprefix("experiments=toy/") for words in trainer.calls]
