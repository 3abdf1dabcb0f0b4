"""Cross-checks of the benchmark scores; nothing is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from sm_diffusion.config.schema_scores import ScoresConfig
from sm_diffusion.evaluation.benchmarks.task_data import SOURCES
from sm_diffusion.evaluation.benchmarks.tasks import BUDGETS, STYLES
from sm_diffusion.sampling.settings import SamplerSettings
from sm_diffusion.types import UserError

PROTOCOLS = ("official", "released", "ours")
FEEDBACK = ("auto", "off", "both")
CODE = ("humaneval", "humaneval_plus", "mbpp", "mbpp_plus")


def fraction_of(text: str) -> Fraction:
    """A budget such as 1, 1/2 or 0.25. ValueError for anything else."""
    try:
        return Fraction(text.replace(" ", ""))
    except ZeroDivisionError:
        raise ValueError(text) from None


def scores_problems(settings: ScoresConfig, sampler: SamplerSettings) -> Iterator[str]:
    """One line for every problem."""
    if settings.name not in SOURCES:
        yield f"evaluator.name={settings.name}: no such task; choose from {', '.join(sorted(SOURCES))}"
        return
    choices = (("protocol", PROTOCOLS), ("feedback", FEEDBACK), ("style", STYLES))
    for key, allowed in choices:
        value = vars(settings)[key]
        if value is not None and value not in allowed:
            yield f"evaluator.{key}={value}: unknown; choose one of {', '.join(allowed)}"
    for key in ("limit", "new_tokens", "num_samples"):
        value = vars(settings)[key]
        if value is not None and value < 1:
            yield f"evaluator.{key}={value}: must be positive"
    for k in settings.pass_at or [0]:
        if not 1 <= k <= max(settings.num_samples, 1):
            yield f"evaluator.pass_at={settings.pass_at}: each must lie in 1 .. num_samples={settings.num_samples}"
            break
    if len(set(settings.seeds)) < len(settings.seeds) or any(not 0 <= seed < 2**31 for seed in settings.seeds):
        yield f"evaluator.seeds={settings.seeds}: must be different numbers, 0 or larger"
    if settings.path is not None and not Path(settings.path).expanduser().is_file():
        yield f"evaluator.path={settings.path}: no such file; give a .jsonl or .jsonl.gz file, or null for the hub"
    for path in settings.compare:
        if not Path(path).is_file():
            yield f"evaluator.compare={path}: no such file; give a results.json of an earlier run of {settings.name}"
    yield from _budgets(settings, sampler)
    yield from _execution(settings)


def _budgets(settings: ScoresConfig, sampler: SamplerSettings) -> Iterator[str]:
    new_tokens = settings.new_tokens or BUDGETS[settings.name]
    if new_tokens < 1:
        return
    seen = set()
    for text in settings.nfe:
        try:
            value = fraction_of(text)
        except ValueError:
            yield f"evaluator.nfe={text}: not a number; write fractions of the new tokens, such as [1,1/2,1/4]"
            continue
        steps = value * new_tokens
        if not 0 < value <= 1 or steps.denominator != 1:
            yield (
                f"evaluator.nfe={text}: gives {float(steps):g} steps for {new_tokens} new tokens; "
                "it must be a whole number from 1 to the new tokens"
            )
        elif value in seen:
            yield f"evaluator.nfe={settings.nfe}: {text} twice"
        else:
            try:
                sampler.with_total_steps(total=int(steps), new_tokens=new_tokens)
            except UserError as error:
                yield f"{error}; or set evaluator.nfe=[] for the sampler's own steps"
        seen.add(value)


def _execution(settings: ScoresConfig) -> Iterator[str]:
    if settings.name not in CODE:
        return
    if not settings.allow_code_execution:
        yield (
            f"evaluator.allow_code_execution=false: {settings.name} runs programs a model wrote; "
            "set evaluator.allow_code_execution=true to run them in the sandbox"
        )
    yield from settings.executor.problems()
