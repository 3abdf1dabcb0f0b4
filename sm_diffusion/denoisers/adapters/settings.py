"""Settings of adapters; peft itself is imported when they are attached."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass

from sm_diffusion.registry import register
from sm_diffusion.types import UserError

KINDS = ("none", "lora", "dora")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@register("peft", "peft")
@dataclass
class AdapterSettings:
    """Adapters: with any, only they and the omegas are trained, and checkpoints hold nothing else.

    dora: LoRA with a learned magnitude a row (arXiv 2402.09353).
    """

    kind: str = "none"  # none | lora | dora
    rank: int = 16
    alpha: int = 16  # the adapter is scaled by alpha / rank
    dropout: float = 0.0  # probability, before the adapter
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    quantize: bool = False  # base in 4-bit NF4 (QLoRA); needs bitsandbytes

    def problems(self) -> Iterator[str]:
        if self.kind not in KINDS:
            yield f"peft.kind={self.kind}: unknown; choose one of {', '.join(KINDS)}"
        if self.kind == "none":
            if self.quantize:
                yield "peft.quantize=true: a 4-bit base cannot be trained itself; set peft=qlora_r16"
            return
        for name in ("rank", "alpha"):
            if vars(self)[name] < 1:
                yield f"peft.{name}={vars(self)[name]}: must be >= 1; published: 16"
        if not 0 <= self.dropout < 1:
            yield f"peft.dropout={self.dropout}: must lie in [0, 1)"
        unknown = [target for target in self.targets if target not in PROJECTIONS]
        if unknown or not self.targets:
            yield f"peft.targets=[{', '.join(self.targets)}]: choose from {', '.join(PROJECTIONS)}"

    def check_packages(self) -> None:
        """UserError where this machine lacks a package they need; before a 7B base is opened, not for `smd plan`."""
        if self.kind != "none" and importlib.util.find_spec("peft") is None:
            raise UserError(f"peft.kind={self.kind}: not installed; pip install 'sm-diffusion[peft]', or set peft=none")
        if self.quantize and importlib.util.find_spec("bitsandbytes") is None:
            raise UserError(
                "peft.quantize=true: bitsandbytes is not installed; pip install 'sm-diffusion[scale]', or set "
                "peft=lora_r16"
            )
