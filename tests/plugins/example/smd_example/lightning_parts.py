"""What needs Lightning: imported only when a run is built, so that commands start quickly."""

from __future__ import annotations

import json
from typing import Any

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger

from sm_diffusion.training.callbacks.settings import RunContext


class CountSteps(Callback):
    """Writes how many steps were trained."""

    def __init__(self, run: RunContext, word: str) -> None:
        self.run, self.word = run, word

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        (self.run.folder / "steps.txt").write_text(f"{self.word} {trainer.global_step}", encoding="utf-8")


class JsonLines(Logger):
    """One line of JSON a call."""

    def __init__(self, run: RunContext) -> None:
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        return "json_lines"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with (self.run.folder / "numbers.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **{key: float(value) for key, value in metrics.items()}}) + "\n")
