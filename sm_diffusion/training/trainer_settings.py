"""How long and on what a run is carried out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from sm_diffusion.registry import MISSING, register

SKIPPED_STEPS, TRACED_STEPS = 3, 3  # of trainer.profile


@register("trainer", "trainer")
@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """Steps, validation, precision, devices."""

    max_steps: int = MISSING  # optimizer steps
    max_flops: float | None = None  # training FLOPs that end a run early; null: none
    val_every_steps: int = 1000  # optimizer steps; 0: only at the end
    log_every_steps: int = 50
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"  # auto: bf16-mixed on CUDA, 32-true elsewhere
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    devices: int = 1  # processes a node
    num_nodes: int = 1
    deterministic: bool = False
    threads: int | None = None  # CPU threads; null: torch's choice
    compile: bool = False  # torch.compile of the blocks: faster steps, minutes for the first one
    compile_backend: Literal["inductor", "aot_eager", "eager"] = "inductor"  # the last two: to find faults
    profile: bool = False  # trace optimizer steps 3 to 5 into <output_dir>/profile

    def problems(self) -> Iterator[str]:
        for key in ("max_steps", "max_flops", "log_every_steps", "devices", "num_nodes", "threads"):
            value = vars(self)[key]
            if value is not None and not value > 0:
                yield f"trainer.{key}={value}: must be positive"
        if self.val_every_steps < 0:
            yield f"trainer.val_every_steps={self.val_every_steps}: must be >= 0 (0: only at the end)"
        if self.accelerator == "cuda" and not torch.cuda.is_available():
            yield "trainer.accelerator=cuda: this machine has no CUDA device; set trainer.accelerator=cpu"


def accelerator_of(name: str) -> str:
    """cpu or cuda; "auto" takes a GPU where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def precision_of(name: str, accelerator: str) -> str:
    """Lightning's name; "auto" is bf16-mixed on CUDA and 32-true elsewhere."""
    return ("bf16-mixed" if accelerator == "cuda" else "32-true") if name == "auto" else name
