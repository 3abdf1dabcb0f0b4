"""How far the two protocols' ways of reading an answer differ: reference solutions, worded as models word them."""

from __future__ import annotations

import ast

import pytest

from sm_diffusion.evaluation.benchmarks.tasks import build_task
from sm_diffusion.types import UserError
from tests.helpers.tasks import real

EXAMPLE = "For example:\n\n```python\nprint('hello')\n```\n\nThe solution:\n\n"
# (answers read by first_block, by search) of 164 HumanEval reference solutions.
CODE_FORMS = {
    "python block": (lambda code: f"Here it is:\n\n```python\n{code}```\nIt runs in linear time.", 164, 164),
    "block cut off by the budget": (lambda code: f"```python\n{code}", 164, 164),
    "block, then a block of tests": (lambda code: f"```python\n{code}```\n```python\nassert True\n```", 164, 164),
    "block without a language": (lambda code: f"Here it is:\n\n```\n{code}```", 0, 164),
    "block marked py": (lambda code: f"Here it is:\n\n```py\n{code}```", 0, 164),
    "a block of examples first": (lambda code: f"{EXAMPLE}```python\n{code}```", 0, 164),
    "code alone": (lambda code: code, 164, 164),
    "prose, then code": (lambda code: f"Sure! The function is\n\n{code}", 0, 164),
}
# Of 1,319 GSM8K reference solutions.
NUMBER_FORMS = {
    "the reference": (lambda text, gold: f"{text}\n#### {gold}", 1319, 1319),
    "boxed at the end": (lambda text, gold: f"{text}\n\\boxed{{{gold}}}", 1319, 1319),
    "boxed, then a remark": (lambda text, gold: f"{text}\n\\boxed{{{gold}}}\nI checked it in 2 ways.", None, 1319),
    "the answer is, then a remark": (lambda text, gold: f"{text}\nThe answer is {gold}. I used 3 steps.", None, 1319),
}


def functions(program):
    """{name: tree} of the functions of a program; empty where it does not parse."""
    try:
        tree = ast.parse(program)
    except SyntaxError:
        return {}
    return {node.name: ast.dump(node) for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("form", CODE_FORMS)
def test_code(form):
    word, first, searched = CODE_FORMS[form]
    path = real("HumanEval.jsonl.gz")
    found = []
    for rules in ("first_block", "search"):
        task = build_task("humaneval", path, rules=rules)
        read = 0
        for problem in task.problems:
            program = task.extract(problem, word(problem.reference)).value or ""
            wanted = functions(problem.reference)[problem.entry_point]
            read += functions(program).get(problem.entry_point) == wanted
        found.append(read)
    assert found == [first, searched]


@pytest.mark.parametrize("form", NUMBER_FORMS)
def test_numbers(form):
    word, first, searched = NUMBER_FORMS[form]
    path = real("gsm8k_test.jsonl")
    found = []
    for rules in ("first_block", "search"):
        task = build_task("gsm8k", path, rules=rules)
        texts = [(p, word(p.reference.rpartition("####")[0].strip(), p.gold)) for p in task.problems]
        found.append(sum(task.extract(problem, text).value == problem.gold for problem, text in texts))
    assert found[1] == searched
    assert found[0] == first if first is not None else found[0] < 200


def test_a_body_alone_continues_the_prompt():
    """What first_block finds without the function's head goes behind the prompt, as the harness does."""
    task = build_task("humaneval", real("HumanEval.jsonl.gz"), rules="first_block")
    problem = task.problems[0]
    body = problem.reference[len(problem.fields["prompt"]) :]
    found = task.extract(problem, f"```python\n{body}```")
    assert functions(found.value)[problem.entry_point] == functions(problem.reference)[problem.entry_point]


def test_protocol_says_which_rules():
    path = real("HumanEval.jsonl.gz")
    assert build_task("humaneval", path).protocol()["extraction"] == "search"
    assert build_task("humaneval", path, rules="first_block").protocol()["extraction"] == "first_block"
    with pytest.raises(UserError, match="rules: no rules 'last'; choose from search, first_block"):
        build_task("humaneval", path, rules="last")
