"""The authors' `transparency_config.json`: the omegas and the kind of feedback, beside a PEFT adapter.

Layout, from the README of the authors' coding experiments (all seven keys in one flat object):

    {"transparency_alg": "mixinputs_with_topk", "transparency_scale": 0.25, "transparency_centre": -1,
     "transparency_steepness": 5, "mixinputs_k": 1, "mixture_temp": 1.0, "transparency_scheduling": "none"}

scale, steepness and centre are omega_s, omega_a and omega_b (effective values, not raw parameters). An adapter trained
without feedback has {"transparency_alg": "none"} alone. The authors round the numbers to bfloat16; we write them whole.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sm_diffusion.diffusion.soft_mask import (
    SOFTPLUS_EPS,
    ConstantStrength,
    FullVocabularySoftMask,
    LinearStrength,
    SoftMask,
    SoftMaskBase,
    StepwiseStrength,
    StrengthSchedule,
)
from sm_diffusion.files import read_json, write_json
from sm_diffusion.types import UserError

FILE_NAME = "transparency_config.json"
TOP_K, TEMPERATURE, NONE = "mixinputs_with_topk", "mixinputs_with_temp", "none"
SCHEDULES = ("none", "linear", "stepwise")


@dataclass(frozen=True, kw_only=True)
class TransparencyConfig:
    """One such file. Ranges: scale in [0, 1], centre <= 0 (nats), steepness >= 0, k >= 1, temperature > 0."""

    transparency_alg: str = TOP_K
    transparency_scale: float = 0.0
    transparency_centre: float = 0.0
    transparency_steepness: float = 0.0
    mixinputs_k: int = 1
    mixture_temp: float = 1.0
    transparency_scheduling: str = "none"

    @classmethod
    def parse(cls, values: Any, where: str) -> TransparencyConfig:
        """Check a decoded JSON value; UserError names `where` and every problem."""
        if not isinstance(values, dict):
            raise UserError(f"{where}: expected a JSON object, found {type(values).__name__}")
        if values.get("transparency_alg") == NONE:
            return cls(transparency_alg=NONE)
        names = {field.name: field for field in dataclasses.fields(cls)}
        problems = [f"missing {name}" for name in names if name not in values]
        problems += [f"unknown {name}" for name in values if name not in names]
        for name, value in values.items():
            if name in names and not _fits(value, str(names[name].type)):
                problems.append(f"{name}={value!r} is not of type {names[name].type}")
        if problems:
            raise UserError(f"{where}: {'; '.join(problems)}")
        config = cls(**values)
        problems = config.out_of_range()
        if problems:
            raise UserError(f"{where}: {'; '.join(problems)}")
        return config

    def out_of_range(self) -> list[str]:
        """One message for every value outside its range."""
        checks = {
            f"transparency_alg={self.transparency_alg}: choose {TOP_K}, {TEMPERATURE} or {NONE}": (
                self.transparency_alg in (TOP_K, TEMPERATURE, NONE)
            ),
            f"transparency_scale={self.transparency_scale} outside [0, 1]": 0 <= self.transparency_scale <= 1,
            f"transparency_centre={self.transparency_centre} above 0": self.transparency_centre <= 0,
            f"transparency_steepness={self.transparency_steepness} below 0": self.transparency_steepness >= 0,
            f"mixinputs_k={self.mixinputs_k} below 1": self.mixinputs_k >= 1,
            f"mixture_temp={self.mixture_temp} is not > 0": self.mixture_temp > 0,
            f"transparency_scheduling={self.transparency_scheduling}: choose {', '.join(SCHEDULES)}": (
                self.transparency_scheduling in SCHEDULES
            ),
        }
        return [message for message, fine in checks.items() if not fine]

    def soft_mask(self, *, learnable: bool = True) -> SoftMaskBase | None:
        """The soft mask with these omegas; None without feedback."""
        if self.transparency_alg == NONE:
            return None
        # The soft mask adds SOFTPLUS_EPS to what it starts from; the file holds the effective values.
        omegas = {
            "omega_s": float(self.transparency_scale),
            "omega_a": max(self.transparency_steepness - SOFTPLUS_EPS, 0.0),
            "omega_b": min(self.transparency_centre + SOFTPLUS_EPS, 0.0),
        }
        if self.transparency_alg == TEMPERATURE:
            temperature = max(self.mixture_temp - SOFTPLUS_EPS, SOFTPLUS_EPS)
            return FullVocabularySoftMask(temperature=temperature, **omegas, learnable=learnable)
        return SoftMask(top_k=self.mixinputs_k, **omegas, learnable=learnable)

    def strength(self) -> StrengthSchedule:
        """The decode-time schedule of omega_s."""
        if self.transparency_scheduling == "linear":
            return LinearStrength()
        if self.transparency_scheduling == "stepwise":
            return StepwiseStrength()
        return ConstantStrength()


def _fits(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return False
    accepted: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "float": (int, float)}
    return isinstance(value, accepted[kind])


def describe(soft_mask: SoftMaskBase | None, scheduling: str = "none") -> TransparencyConfig:
    """The file's content for a soft mask (None: no feedback)."""
    if soft_mask is None:
        return TransparencyConfig(transparency_alg=NONE)
    config = TransparencyConfig(
        transparency_scale=soft_mask.omega_s.item(),
        transparency_centre=soft_mask.omega_b.item(),
        transparency_steepness=soft_mask.omega_a.item(),
        transparency_scheduling=scheduling,
    )
    if isinstance(soft_mask, FullVocabularySoftMask):
        temperature = soft_mask.temperature.item()
        return dataclasses.replace(config, transparency_alg=TEMPERATURE, mixture_temp=temperature)
    assert isinstance(soft_mask, SoftMask), f"no such file for {type(soft_mask).__name__}"
    return dataclasses.replace(config, transparency_alg=TOP_K, mixinputs_k=soft_mask.top_k)


def read(folder: Path) -> TransparencyConfig:
    """Read `transparency_config.json` of an adapter folder. UserError if it is missing or malformed."""
    path = folder / FILE_NAME
    if not path.exists():
        raise UserError(f"{path} does not exist: it holds the omegas of an adapter")
    return TransparencyConfig.parse(read_json(path), str(path))


def write(config: TransparencyConfig, folder: Path) -> None:
    """Write `transparency_config.json` as the authors' generation code reads it."""
    values = {"transparency_alg": NONE} if config.transparency_alg == NONE else dataclasses.asdict(config)
    write_json(folder / FILE_NAME, values)
