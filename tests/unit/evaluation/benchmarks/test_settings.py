"""Settings of the benchmark scores: what is refused, in one line each."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from sm_diffusion.config.compose import compose_config
from sm_diffusion.evaluation.benchmarks.settings import ScoresSettings
from sm_diffusion.evaluation.execution.limits import ExecutorSettings
from sm_diffusion.sampling import SamplerSettings
from sm_diffusion.sampling.orders.confidence import ConfidenceSettings, ThresholdSettings
from sm_diffusion.types import UserError


@pytest.mark.parametrize(
    ("changes", "sampler", "expected"),
    [
        ({"limit": 0}, {}, r"evaluator\.limit=0: must be positive"),
        ({"num_samples": 0}, {}, r"evaluator\.num_samples=0: must be positive"),
        ({"pass_at": [1, 5]}, {}, r"evaluator\.pass_at=\[1, 5\]: each must lie in 1 \.\. num_samples=1"),
        ({"nfe": ["2"]}, {}, r"evaluator\.nfe=2: gives 16 steps for 8 new tokens"),
        ({"nfe": ["1/3"]}, {}, r"evaluator\.nfe=1/3: gives 2\.66667 steps"),
        ({"nfe": ["half"]}, {}, r"evaluator\.nfe=half: not a number"),
        ({"nfe": ["1/0"]}, {}, r"evaluator\.nfe=1/0: not a number"),
        ({"nfe": ["1", "1.0"]}, {}, r"evaluator\.nfe=.*1\.0 twice"),
        ({"nfe": ["1"]}, {"block_length": 3}, r"8 steps do not divide into 3 blocks"),
        ({"seeds": [1, 1]}, {}, r"evaluator\.seeds=\[1, 1\]: must be different"),
        ({"compare": ["gone.json"]}, {}, r"evaluator\.compare=gone\.json: no such file"),
        ({"path": "gone.jsonl"}, {}, r"evaluator\.path=gone\.jsonl: no such file"),
        ({"name": "mbpp"}, {}, r"evaluator\.allow_code_execution=false: mbpp runs programs .*=true to run them"),
        ({"name": "mbpp", "allow_code_execution": True, "executor": ExecutorSettings(cpu_seconds=0)}, {},
         r"evaluator\.executor\.cpu_seconds: 0 is not a positive number"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_line(changes: dict[str, Any], sampler: dict[str, Any], expected: str) -> None:
    given = {"name": "gsm8k", "new_tokens": 8, "nfe": ["1"], **changes}
    settings = ScoresSettings(**given)
    order = SamplerSettings(order=ConfidenceSettings(), **sampler)
    found = [*settings.problems(), *settings.problems_in_evaluation(order, 1)]
    assert len(found) == 1
    assert re.search(expected, found[0])
    assert "\n" not in found[0]


def test_a_threshold_has_no_budget() -> None:
    settings = ScoresSettings(name="gsm8k", new_tokens=8, nfe=["1"])
    sampler = SamplerSettings(order=ThresholdSettings())
    assert re.search(r"cannot take 8 steps.*evaluator\.nfe=\[\]", next(settings.problems_in_evaluation(sampler, 1)))
    assert not list(replace(settings, nfe=[]).problems_in_evaluation(sampler, 1))


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        ({"cache": "dual"}, r"sampler\.cache=dual: caches follow blocks"),
        ({"cache": "some"}, r"sampler\.cache=some: unknown; choose one of none, prefix, dual"),
        ({"refresh_steps": 2}, r"sampler\.refresh_steps=2: there is no cache"),
        ({"block_length": 0}, r"sampler\.block_length=0: must be >= 1"),
        ({"block_length": 4, "cache": "dual", "refresh_steps": 0}, r"sampler\.refresh_steps=0: must be >= 1"),
    ],
)
def test_bad_blocks_and_caches_are_one_line(sampler: dict[str, Any], expected: str) -> None:
    found = list(SamplerSettings(order=ConfidenceSettings(), **sampler).problems())
    assert len(found) == 1
    assert re.search(expected, found[0])


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("name=gsm9k", r"^evaluator\.name=gsm9k: unknown \(did you mean gsm8k\?\); choose one of humaneval, "),
        ("protocol=theirs", r"^evaluator\.protocol=theirs: unknown; choose one of official, released, ours"),
        ("style=poem", r"^evaluator\.style=poem: unknown; choose one of chat, chat_prefix, completion, released$"),
        ("feedback=on", r"^evaluator\.feedback=on: unknown; choose one of auto, off, both$"),
    ],
)
def test_unknown_choices_are_one_line(word: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        compose_config("eval", ["checkpoint=x", "evaluator=gsm8k", f"evaluator.{word}"])
    assert "\n" not in str(caught.value)
