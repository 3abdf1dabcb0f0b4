"""Settings of a model in lm-evaluation-harness: what `--model_args` takes, and what a task asks of an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from sm_diffusion.types import UserError

DEFAULT_NEW_TOKENS = 256  # lm-evaluation-harness's own, for tasks that do not say
_LENGTH_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_KNOWN_WISHES = (*_LENGTH_KEYS, "until", "do_sample", "temperature", "top_p")


@dataclass(frozen=True, kw_only=True)
class HarnessSettings:
    """batch_size: rows of a forward pass; it changes no answer beyond rounding. Lengths are in tokens."""

    batch_size: int = 1
    seed: int = 1
    max_length: int | None = None  # longest text, prompt included; None: the model's
    feedback: bool = True  # likelihood: the first of two passes, where the model is soft-masked
    mc_samples: int = 128  # likelihood: noised copies of a text; even
    mc_estimator: str = "mask_count"  # mask_count | continuous_time
    is_greedy: bool = True  # likelihood: also decode greedily (what `acc` of loglikelihood tasks reads)
    sampler: str = "confidence_entropy"  # a name of conf/sampler
    nfe: float = 1.0  # denoising steps a new token: 1, 0.5, 0.25
    steps: int | None = None  # denoising steps, instead of nfe
    temperature: float | None = None  # None: the task's, else the sampler's
    top_p: float | None = None  # None: the task's, else the sampler's
    max_gen_toks: int | None = None  # most new tokens, also where the task asks for more

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> HarnessSettings:
        """From `--model_args`, `--batch_size` and `--max_batch_size`; all problems in one UserError."""
        known = {field.name: str(field.type) for field in fields(cls)}
        problems = [
            f"{name}={value}: unknown model argument; known are pretrained, weights, {', '.join(known)}"
            for name, value in values.items()
            if name not in known
        ]
        found = {}
        for name, value in values.items():
            if name in known:
                try:
                    found[name] = _converted(value, known[name])
                except ValueError:
                    problems.append(f"{name}={value}: must be {known[name].replace(' | None', '')}")
        if not problems:
            problems = list(cls(**found).problems())
        if problems:
            raise UserError("model_args: " + "; ".join(problems))
        return cls(**found)

    def problems(self) -> list[str]:
        positive = ("batch_size", "mc_samples", "steps", "max_gen_toks", "nfe")
        values = {name: value for name, value in vars(self).items() if value is not None}
        return [f"{name}={values[name]}: must be > 0" for name in positive if name in values and values[name] <= 0]

    def record(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("batch_size", "max_length")}


def _converted(value: Any, kind: str) -> Any:
    """lm_eval hands numbers, booleans or texts, as the command line spells them. ValueError for what does not fit."""
    if value is None:
        if "None" not in kind:
            raise ValueError
        return None
    match kind.removesuffix(" | None"):
        case "bool":
            if str(value).lower() not in ("true", "false"):
                raise ValueError
            return str(value).lower() == "true"
        case "int":
            if isinstance(value, bool) or int(value) != float(value):
                raise ValueError
            return int(value)
        case "float":
            if isinstance(value, bool):
                raise ValueError
            return float(value)
        case _:
            return str(value)


class Wish(NamedTuple):
    """What one answer is asked to be. until: texts before which it ends."""

    new_tokens: int
    until: tuple[str, ...]
    temperature: float | None
    top_p: float | None


def wish_of(values: Mapping[str, Any], settings: HarnessSettings, length: int) -> Wish:
    """From a task's generation_kwargs (and `--gen_kwargs`); model arguments come first.

    do_sample: false means temperature 0. UserError for keys that would have no effect, and for an answer that leaves
    no room for a prompt.
    """
    unknown = [key for key in values if key not in _KNOWN_WISHES]
    if unknown:
        raise UserError(
            f"generation_kwargs: {unknown[0]}={values[unknown[0]]}: not supported; known are {', '.join(_KNOWN_WISHES)}"
        )
    until = values.get("until") or []
    wanted = next((int(values[key]) for key in _LENGTH_KEYS if values.get(key) is not None), DEFAULT_NEW_TOKENS)
    new_tokens = wanted if settings.max_gen_toks is None else min(wanted, settings.max_gen_toks)
    if not 0 < new_tokens < length:
        raise UserError(
            f"max_gen_toks={new_tokens}: the model takes {length} tokens, prompt included; add "
            f"max_gen_toks={max(1, length // 2)} to --model_args"
        )
    temperature, top_p = settings.temperature, settings.top_p
    if temperature is None:
        temperature = values.get("temperature")
        if values.get("do_sample") is False:
            temperature = 0.0
    return Wish(
        new_tokens,
        (until,) if isinstance(until, str) else tuple(until),
        None if temperature is None else float(temperature),
        values.get("top_p") if top_p is None else top_p,
    )
