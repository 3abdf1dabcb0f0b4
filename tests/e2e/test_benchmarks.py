"""The real benchmarks through the real executor: references pass, broken references fail.

The whole sets are `slow`; a sample of each is in the default run.
"""

from __future__ import annotations

import ast
import time

import pytest

from sm_diffusion.evaluation.benchmarks.checks import restore_types
from sm_diffusion.evaluation.benchmarks.tasks import build_task
from sm_diffusion.evaluation.execution.executor import Executor, Job
from sm_diffusion.types import UserError
from tests.helpers.tasks import real

# Wraps the reference: the same function, but what it returns is wrong in value and right in type.
BREAK = """
_reference = {entry}
def _spoil(value):
    if isinstance(value, bool): return not value
    if isinstance(value, (int, float, complex)): return value + 1
    if isinstance(value, str): return value + "x"
    if isinstance(value, (list, tuple)): return type(value)([*value, 1])
    return 0
def {entry}(*args, **kwargs):
    return _spoil(_reference(*args, **kwargs))
"""


@pytest.fixture(scope="module")
def executor():
    try:
        return Executor(allow_code_execution=True)
    except UserError as error:
        pytest.skip(str(error))


def jobs_of(problems, program):
    return [
        (f"{problem.task_id} {label}", Job(program(problem), checks, problem.limits))
        for problem in problems
        for label, checks in problem.checks.items()
    ]


def failures(executor, jobs):
    verdicts = executor.run_many([job for _, job in jobs])
    return {name: verdict for (name, _), verdict in zip(jobs, verdicts, strict=True) if not verdict.passed}


def broken(problem):
    return problem.reference + BREAK.format(entry=problem.entry_point)


def humaneval(executor, problems):
    """Both directions in one run of the executor; returns its seconds."""
    right, wrong = jobs_of(problems, lambda problem: problem.reference), jobs_of(problems, broken)
    started = time.monotonic()
    verdicts = executor.run_many([job for _, job in right + wrong])
    seconds = time.monotonic() - started
    assert [verdict.status for verdict in verdicts[: len(right)]] == ["passed"] * len(right)
    assert {verdict.status for verdict in verdicts[len(right) :]} <= {"failed", "exception"}
    return seconds


def test_humaneval_sample(executor):
    problems = build_task("humaneval", real("HumanEval.jsonl.gz")).problems
    chosen = [p for p in problems if p.task_id.split("/")[1] in {"0", "10", "32", "33", "38", "50", "53", "75"}]
    humaneval(executor, chosen)


@pytest.mark.slow
def test_humaneval_whole(executor):
    problems = build_task("humaneval", real("HumanEval.jsonl.gz")).problems
    seconds = humaneval(executor, problems)
    print(f"HumanEval: {2 * len(problems)} programs in {seconds:.1f} s with {executor.workers} workers")
    assert len(problems) == 164


def test_mbpp_sample(executor):
    """Among them the three problems whose tests make objects of the program's class, and `sum`, a builtin's name."""
    problems = build_task("mbpp", real("mbpp.jsonl"), split="all").problems
    special = {"126", "367", "533", "596", "601", "927"}
    chosen = [problem for problem in problems if problem.task_id in special or int(problem.task_id) % 90 == 0]
    assert len(chosen) > 12
    assert not failures(executor, jobs_of(chosen, lambda problem: problem.reference))
    assert len(failures(executor, jobs_of(chosen[::4], broken))) == len(chosen[::4])


@pytest.mark.slow
def test_mbpp_whole(executor):
    problems = build_task("mbpp", real("mbpp.jsonl"), split="all").problems
    assert len(problems) == 974
    assert not failures(executor, jobs_of(problems, lambda problem: problem.reference))


def test_mbpp_plus_sample(executor):
    """Among them tuples, sets, complex numbers, match objects, floats and unordered results."""
    problems = build_task("mbpp_plus", real("mbpp_plus_v1.jsonl")).problems
    special = {f"Mbpp/{number}" for number in (2, 115, 124, 252, 580, 737, 787, 791, 803)}
    chosen = [problem for problem in problems if problem.task_id in special]
    assert not failures(executor, jobs_of(chosen, lambda problem: problem.reference))
    wrong = failures(executor, jobs_of(chosen[:3], lambda p: f"def {p.entry_point}(*a): return 'no such result'"))
    assert {name.split()[1] for name in wrong} == {"base", "plus"}


@pytest.mark.slow
def test_mbpp_plus_whole(executor):
    problems = build_task("mbpp_plus", real("mbpp_plus_v1.jsonl")).problems
    assert len(problems) == 399
    assert not failures(executor, jobs_of(problems, lambda problem: problem.reference))


def test_names_come_from_the_reference():
    """All 974 problems: the tests use one function of the reference, and in three of them its class as well."""
    problems = build_task("mbpp", real("mbpp.jsonl"), split="all").problems
    several = {p.task_id: p.checks["tests"].names for p in problems if len(p.checks["tests"].names) > 1}
    assert several == {
        "367": ("Node", "is_tree_balanced"),
        "601": ("Pair", "max_chain_length"),
        "927": ("Node", "max_height"),
    }


def test_restored_types_agree_with_the_literal_arguments():
    """Base inputs of MBPP+ are the arguments of its assertions: restoring the JSON ones gives these back."""
    rows = build_task("mbpp_plus", real("mbpp_plus_v1.jsonl")).data.rows
    different = []
    for row in rows:
        calls = [node for node in ast.walk(ast.parse(row["assertion"])) if isinstance(node, ast.Call)]
        calls = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == row["entry_point"]]
        try:
            literals = [[ast.literal_eval(argument) for argument in call.args] for call in calls]
        except ValueError:
            continue  # `14 * 14`
        for position in range(min(len(arguments) for arguments in literals)):
            column = [arguments[position] for arguments in literals]
            as_json = [arguments[position] for arguments in row["base_input"]]
            restored = [restore_types(value, column) for value in as_json]
            if sorted(map(repr, restored)) != sorted(map(repr, column)):
                different.append(row["task_id"])
    # 87: repeated keys; 124: complex numbers in strings; 301, 582: integer keys, which JSON does not have.
    assert sorted(set(different)) == ["Mbpp/124", "Mbpp/301", "Mbpp/582", "Mbpp/87"]


@pytest.mark.parametrize(
    ("value", "examples", "expected"),
    [
        ([1, 2], [(3,)], (1, 2)),
        ([[1], [2]], [[(3,)]], [(1,), (2,)]),
        ([1, 1], [{3}], {1}),
        ([], [{}, {1}], {}),
        ([1], [[2], (3,)], [1]),
        ([1], [], [1]),
        ("a", ["b"], "a"),
        ({"k": [1]}, [{"k": (2,)}], {"k": (1,)}),
    ],
)
def test_restore_types(value, examples, expected):
    restored = restore_types(value, examples)
    assert restored == expected
    assert repr(restored) == repr(expected)
    assert restore_types([1, [2, [3]]], [(1, (2,))], deep=True) == (1, (2, (3,)))
