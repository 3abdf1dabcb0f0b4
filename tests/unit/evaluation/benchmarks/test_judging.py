"""Prompts, programs from answers, records, summaries and protocols."""

from __future__ import annotations

import json

import pytest

from sm_diffusion.evaluation.benchmarks.judging import Answer, score_answers
from sm_diffusion.evaluation.benchmarks.tasks import build_task
from sm_diffusion.evaluation.execution.executor import Executor
from sm_diffusion.registry import names
from sm_diffusion.types import UserError
from tests.helpers.tasks import EVALPLUS, HUMANEVAL, MBPP, MBPP_PLUS_HUB, ROWS, write


@pytest.fixture(scope="module")
def executor():
    try:
        return Executor(allow_code_execution=True, packages=())
    except UserError as error:
        pytest.skip(str(error))


GOOD = "def add(a, b):\n    return a + b\n"


def fenced(code: str) -> str:
    return f"Sure:\n```python\n{code}```\n"


def test_published_budgets(tmp_path):
    budgets = {task: build_task(task, write(tmp_path, ROWS[task])).max_new_tokens for task in names("benchmark")}
    assert budgets == {
        "humaneval": 768, "humaneval_plus": 768, "mbpp": 512, "mbpp_plus": 512, "gsm8k": 256, "math500": 512,
    }  # fmt: skip


@pytest.mark.parametrize("task", names("benchmark"))
def test_protocol_is_json_and_depends_on_the_prompt(task, tmp_path):
    path = write(tmp_path, ROWS[task])
    chat = build_task(task, path).protocol()
    json.dumps(chat)
    assert chat["num_few_shot"] == 0
    assert chat["stop_strings"] == []
    assert len(chat["prompt_sha256"]) == 64
    if task != "mbpp":
        completion = build_task(task, path, style="completion").protocol()
        assert completion["prompt_sha256"] != chat["prompt_sha256"]
        assert completion["stop_strings"]


def test_styles_of_humaneval(executor, tmp_path):
    path = write(tmp_path, [HUMANEVAL])
    texts = {
        "chat": fenced(GOOD),
        "chat_prefix": "    return a + b\n```\nDone.",
        "completion": "    return a + b\n\ndef broken(:",
    }
    for style, text in texts.items():
        task = build_task("humaneval", path, style=style)
        score = score_answers(task, [Answer("HumanEval/0", text)], executor)
        assert score.summary["pass@1"] == 1.0, style
    prompt = build_task("humaneval", path, style="chat_prefix").prompt(task.problems[0])
    assert prompt.text.startswith("```python\ndef add(a, b):")
    assert "def add(a, b)" in prompt.messages[0]["content"]


def test_helpers_and_imports_of_the_prompt_reach_the_program(executor, tmp_path):
    prompt = "from typing import List\nimport math\ndef helper(x):\n    return x + 1\n\n"
    prompt += 'def f(x: List[int]) -> int:\n    """F."""\n'
    test = "def check(candidate):\n    assert candidate([1]) == helper(1)\n"
    row = {**HUMANEVAL, "prompt": prompt, "entry_point": "f", "canonical_solution": "    return 2\n", "test": test}
    task = build_task("humaneval", write(tmp_path, [row]))
    right = "from __future__ import annotations\ndef f(x: List[int]) -> int:\n    return helper(math.floor(x[0]))\n"
    cheat = "def helper(x): return 7\ndef f(x): return 7\n"
    score = score_answers(task, [Answer("HumanEval/0", fenced(text)) for text in (right, cheat)], executor)
    assert [record.passed for record in score.records] == [True, False]
    assert [record.sample for record in score.records] == [0, 1]


def test_mbpp_few_shot_completion(executor, tmp_path):
    rows = [{**MBPP, "task_id": number, "text": f"Task {number}."} for number in (2, 3, 4, 11)]
    task = build_task("mbpp", write(tmp_path, rows), style="completion")
    prompt = task.prompt(task.problems[0]).text
    assert task.protocol()["num_few_shot"] == 3
    assert prompt.count("[BEGIN]") == 4
    assert prompt.count("[DONE]") == 3
    assert "\r" not in prompt
    score = score_answers(task, [Answer("11", GOOD + "[DONE]\nmore")], executor)
    assert score.summary["pass@1"] == 1.0


def test_plus_needs_base_and_plus(executor, tmp_path):
    task = build_task("humaneval_plus", write(tmp_path, [EVALPLUS]))
    texts = [GOOD, "def add(a, b): return 3\n", "def add(a, b): return 7\n"]
    score = score_answers(task, [Answer("HumanEval/0", fenced(text)) for text in texts], executor, k=(1, 2))
    assert [record.passed for record in score.records] == [True, False, False]
    assert [list(record.verdicts) for record in score.records] == [["base", "plus"], ["base", "plus"], ["base"]]
    assert score.summary["pass@1"] == pytest.approx(1 / 3)
    assert score.summary["base_pass@1"] == pytest.approx(2 / 3)
    assert score.summary["pass@2"] == pytest.approx(2 / 3)
    assert score.summary["base_pass@2"] == 1.0


def test_hub_layout_of_mbpp_plus_runs(executor, tmp_path):
    task = build_task("mbpp_plus", write(tmp_path, [MBPP_PLUS_HUB]))
    score = score_answers(task, [Answer("2", fenced(GOOD)), Answer("2", fenced("def add(a, b): return 0\n"))], executor)
    assert [record.passed for record in score.records] == [True, False]


def test_summary_counts(executor, tmp_path):
    task = build_task("humaneval", write(tmp_path, [HUMANEVAL]))
    answers = [
        Answer("HumanEval/0", fenced(GOOD)),
        Answer("HumanEval/0", fenced(GOOD)),
        Answer("HumanEval/0", ""),
        Answer("HumanEval/0", "I would rather not."),
        Answer("HumanEval/0", "```python\ndef add(a, b):\n    return a +", truncated=True),
    ]
    score = score_answers(task, answers, executor, k=(1, 5))
    assert score.summary == {
        "num_problems": 1, "num_answers": 5, "pass@1": 0.4, "pass@5": 1.0, "empty": 1, "truncated": 1,
        "extraction_failures": 2, "harness_errors": 0,
        "extraction_rules": {"fenced": 2, "none": 2, "open_fence": 1}, "verdicts": {"exception": 1, "passed": 2},
    }  # fmt: skip
    json.dumps([record.as_dict() for record in score.records])


def test_numbers_and_math_need_no_executor(tmp_path):
    gsm8k = build_task("gsm8k", write(tmp_path, ROWS["gsm8k"]))
    score = score_answers(gsm8k, [Answer("gsm8k/0", "so \\boxed{2.0}"), Answer("gsm8k/0", "It is 3")])
    assert [record.passed for record in score.records] == [True, False]
    math = build_task("math500", write(tmp_path, ROWS["math500"]))
    score = score_answers(math, [Answer("test/a/1.json", r"so $\boxed{\frac{4}{2}}$")])
    assert score.summary["pass@1"] == 1.0
    assert "{" not in gsm8k.prompt(gsm8k.problems[0]).messages[0]["content"].replace("\\boxed{}", "")


def test_mistakes_are_one_line(tmp_path):
    task = build_task("humaneval", write(tmp_path, [HUMANEVAL]))
    good = Answer("HumanEval/0", "x")
    for answers, words in [
        ([good, Answer("HumanEval/9", "x")], "answers to 1 unknown problems: HumanEval/9"),
        ([], "1 of 1 problems have no answer: HumanEval/0"),
        ([good], "give an Executor"),
    ]:
        with pytest.raises(UserError, match=words) as info:
            score_answers(task, answers)
        assert "\n" not in str(info.value)
    two = build_task("gsm8k", write(tmp_path, [{"question": str(i), "answer": "#### 1"} for i in range(2)]))
    assert score_answers(two, [Answer("gsm8k/1", "1")], allow_missing=True).summary["num_problems"] == 1
    with pytest.raises(UserError, match="pass@2: needs at least 2 answers"):
        score_answers(two, [Answer("gsm8k/0", "1"), Answer("gsm8k/1", "1")], k=(2,))
