"""Protocols: the style each asks for, and what of a row deviates."""

from __future__ import annotations

import pytest

from sm_diffusion.evaluation.benchmarks.protocols import deviations, protocol_of
from sm_diffusion.registry import names
from sm_diffusion.types import UserError


@pytest.mark.parametrize(
    ("protocol", "code", "numbers"),
    [("official", "chat", "chat"), ("ours", "chat_prefix", "chat"), ("released", "released", "released")],
)
def test_styles(protocol: str, code: str, numbers: str) -> None:
    asked = protocol_of(protocol)
    assert [asked.style_for(name) for name in ("humaneval", "mbpp_plus")] == [code, code]
    assert [asked.style_for(name) for name in ("gsm8k", "math500")] == [numbers, numbers]


def test_names_are_registered() -> None:
    assert names("protocol")[:3] == ("official", "released", "ours")
    assert set(names("benchmark")) >= {"humaneval", "humaneval_plus", "mbpp", "mbpp_plus", "gsm8k", "math500"}
    with pytest.raises(UserError, match=r"evaluator\.protocol=theirs: unknown; choose one of official"):
        protocol_of("theirs")


def test_deviations_name_what_was_used_and_what_was_asked() -> None:
    asked = protocol_of("official")
    used = {
        "task": "gsm8k", "style": "chat", "max_new_tokens": 256, "precision": "bf16-mixed", "num_problems": 1319,
        "nfe": "1/2", "sampler": {"temperature": 0.1, "num_steps": 128},
    }  # fmt: skip
    published = {"temperature": 0.1, "num_steps": 256}
    assert deviations(asked, used, published, num_problems=1319) == {}
    other = {**used, "max_new_tokens": 8, "nfe": "1/3", "num_problems": 5, "sampler": {"temperature": 0.5}}
    assert deviations(asked, other, published, num_problems=1319) == {
        "max_new_tokens": [8, 256],
        "num_problems": [5, 1319],
        "nfe": ["1/3", "1, 1/2, 1/4"],
        "sampler.temperature": [0.5, 0.1],
    }
