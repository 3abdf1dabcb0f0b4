"""Protocol `released` as a task: prompts, reading and verdicts from rows to records."""

from __future__ import annotations

import importlib.util

import pytest

from sm_diffusion.evaluation.benchmarks.judging import Answer, score_answers
from sm_diffusion.evaluation.benchmarks.tasks import build_task
from sm_diffusion.evaluation.execution.executor import Executor
from sm_diffusion.evaluation.execution.limits import ExecutionLimits
from sm_diffusion.types import UserError
from tests.helpers.golden import golden_json
from tests.helpers.tasks import HUMANEVAL, MBPP, MBPP_PLUS_HUB, ROWS, write

THREE = {**MBPP, "test_list": ["assert add(1, 2) == 3", "assert add(2, 2) == 4", "assert add(0, 0) == 0"]}
# The sandbox takes only plain values across, so an object that calls itself equal to everything does not pass here.
STRICTER = {"always_equal_object"}


@pytest.fixture(scope="module")
def executor():
    try:
        limits = ExecutionLimits(cpu_seconds=4, wall_seconds=20)
        return Executor(allow_code_execution=True, packages=(), limits=limits, workers=2)
    except UserError as error:
        pytest.skip(str(error))


def verdicts(task, items, executor):
    """{kind: passed} of golden answers, whose problems are those of the task in the order of the items."""
    texts = [item["raw"].split("<|endoftext|>")[0] for item in items]
    answers = [Answer(str(item["task_id"]), text) for item, text in zip(items, texts, strict=True)]
    records = score_answers(task, answers, executor, allow_missing=True).records
    return {item["kind"]: record.passed for item, record in zip(items, records, strict=True)}


@pytest.mark.parity
def test_humaneval_verdicts(executor, tmp_path):
    golden = golden_json("protocol_extraction")["humaneval"]
    entries = {item["task_id"]: item["entry_point"] for item in golden["items"]}
    rows = [
        {**HUMANEVAL, "task_id": name, "prompt": doc["prompt"], "test": doc["test"], "entry_point": entries[name]}
        for name, doc in golden["docs"].items()
    ]
    task = build_task("humaneval", write(tmp_path, rows), style="released")
    found = verdicts(task, golden["items"], executor)
    assert found == {item["kind"]: bool(item["passed"]) for item in golden["items"]}


@pytest.mark.parity
def test_mbpp_verdicts(executor, tmp_path):
    golden = golden_json("protocol_extraction")["mbpp"]
    rows = {}
    for item in golden["items"]:
        asserts = item["target"].split("\n")
        name = asserts[0].split("assert ")[1].split("(")[0]
        code = f"def {name}(*arguments):\n    return None"
        rows[item["task_id"]] = {**MBPP, "task_id": item["task_id"], "code": code, "test_list": asserts}
    task = build_task("mbpp", write(tmp_path, list(rows.values())), style="released")
    found = verdicts(task, golden["items"], executor)
    expected = {item["kind"]: bool(item["passed"]) for item in golden["items"]}
    assert {kind for kind in found if found[kind] != expected[kind]} <= STRICTER


def test_prompt_and_protocol(tmp_path):
    task = build_task("mbpp", write(tmp_path, [THREE]), style="released")
    prompt = task.prompt(task.problems[0])
    assert prompt.messages[0]["content"].endswith("assert add(1, 2) == 3\nassert add(2, 2) == 4\nassert add(0, 0) == 0")
    assert prompt.text == "Here is the completed function:\n```python\n"
    protocol = task.protocol()
    assert (protocol["style"], protocol["extraction"]) == ("released", "released")
    assert protocol["stop_strings"] == ["```"]
    assert not task.turns_end
    assert task.max_prompt_tokens == 1024


def test_mbpp_plus_runs_the_base_asserts_alone(executor, tmp_path):
    row = {**MBPP_PLUS_HUB, "test": "assert add(1, 2) == 4"}
    task = build_task("mbpp_plus", write(tmp_path, [row]), style="released")
    code = "def add(a, b):\n    return a + b\n"
    assert score_answers(task, [Answer("2", f"{code}```")], executor).summary["pass@1"] == 1.0


def test_rows_without_the_released_fields(tmp_path):
    with pytest.raises(UserError, match="needs a field test_list in each row; use evalplus/mbppplus"):
        build_task("mbpp_plus", write(tmp_path, ROWS["mbpp_plus"]), style="released")


def test_gsm8k(tmp_path):
    task = build_task("gsm8k", write(tmp_path, ROWS["gsm8k"]), style="released")
    texts = ["So it is $2.", "It is 2, or 3", "Q: 2", "none"]
    found = [score_answers(task, [Answer("gsm8k/0", text)]).summary["pass@1"] for text in texts]
    assert found == [1.0, 0.0, 0.0, 0.0]


def test_math_needs_its_library(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="judges with the library math_verify"):
        build_task("math500", write(tmp_path, ROWS["math500"]), style="released")
