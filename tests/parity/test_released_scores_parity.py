"""Protocol `released`: prompts, programs and numbers of the authors' harness (protocol_prompts and _extraction)."""

from __future__ import annotations

import importlib.util

import pytest

from sm_diffusion.evaluation.benchmarks import released, released_math
from tests.helpers.golden import golden_json

pytestmark = pytest.mark.parity
END_OF_TEXT = "<|endoftext|>"
FAMILY = {
    "humaneval_instruct": "humaneval", "humaneval_plus_instruct": "humaneval", "mbpp_instruct": "mbpp",
    "mbpp_plus_instruct": "mbpp", "gsm8k_cot": "gsm8k", "math500": "math500",
}  # fmt: skip


def fields_of(doc):
    """The fields a prompt takes, from a row as published."""
    if "test_list" in doc:
        text = doc["text"] if "text" in doc else doc["prompt"]
        return {"text": text, "tests": released.mbpp_asserts(doc["test_list"])}
    return doc


@pytest.mark.parametrize("name", FAMILY)
def test_prompts(name):
    task, family = golden_json("protocol_prompts")["tasks"][name], FAMILY[name]
    assert list(released.PROMPTS[family].stops) == task["until"]
    assert task["max_prompt_len"] == released.MAX_PROMPT_TOKENS
    for problem in task["problems"]:
        fields = fields_of(problem["doc"])
        assert released.user_message(family, fields) == problem["user_message"]
        assert released.gen_prefix(family, fields) == (problem["gen_prefix"] or "")


def items(task):
    found = golden_json("protocol_extraction")[task]
    return [pytest.param(item, id=f"{number}-{item['kind']}") for number, item in enumerate(found["items"])]


def after_stops(family, item):
    answer = released.cut_at_stops(family, item["raw"].split(END_OF_TEXT)[0])
    assert answer == item["after_stops"]
    return answer


@pytest.mark.parametrize("item", items("humaneval"))
def test_humaneval(item):
    prompt = golden_json("protocol_extraction")["humaneval"]["docs"][item["task_id"]]["prompt"]
    answer = after_stops("humaneval", item)
    assert released.humaneval_program(prompt, answer, item["entry_point"]).value == item["program"]


@pytest.mark.parametrize("item", items("mbpp"))
def test_mbpp(item):
    assert released.mbpp_program(after_stops("mbpp", item)).value == item["program"]


@pytest.mark.parametrize("item", items("gsm8k"))
def test_gsm8k(item):
    answer = after_stops("gsm8k", item)
    strict, flexible = released.gsm8k_strict(answer), released.gsm8k_flexible(answer)
    assert (strict, flexible) == (item["strict_match"], item["flexible_extract"])
    assert released.gsm8k_equal(strict, item["gold"]) == bool(item["strict_exact_match"])
    assert released.gsm8k_equal(flexible, item["gold"]) == bool(item["flexible_exact_match"])


@pytest.mark.parametrize("item", items("math"))
def test_math(item):
    answer = after_stops("math500", item)
    assert released_math.gold_boxed(item["gold_solution"]) == item["gold_boxed"]
    assert released_math.gold_answer(item["gold_solution"]) == item["gold_normalized"]
    phrase = released_math.minerva_phrase(answer)
    assert phrase == item["minerva_unnormalized"]
    assert released_math.minerva_normalized(phrase) == item["minerva_normalized"]
    assert released_math.last_boxed(answer) == item["last_boxed"]


@pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="math_verify is not installed")
@pytest.mark.parametrize("item", items("math"))
def test_math_verdict(item):
    assert released_math.math_verified(item["after_stops"], item["gold_normalized"]) == bool(item["math_verify"])
