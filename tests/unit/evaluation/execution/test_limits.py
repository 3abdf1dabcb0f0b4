"""Limits of a program: the user's where given, else the benchmark's, else the defaults; the record shows them."""

from __future__ import annotations

import pytest

from sm_diffusion.evaluation.benchmarks.judging import Answer, judge_answers
from sm_diffusion.evaluation.benchmarks.task_data import TaskRows
from sm_diffusion.evaluation.benchmarks.tasks import Problem, Task
from sm_diffusion.evaluation.execution.executor import Checks, Executor, Job, Verdict
from sm_diffusion.evaluation.execution.limits import DEFAULT_LIMITS, ExecutionLimits, ExecutorSettings
from sm_diffusion.types import UserError

PLUS = ExecutionLimits(cpu_seconds=20, wall_seconds=60)
HEAVY = ExecutionLimits(cpu_seconds=300, wall_seconds=600)


class Recording(Executor):
    """Runs nothing; remembers what bounds each job."""

    def __init__(self, limits: ExecutionLimits) -> None:
        self.limits = limits
        self.mechanisms, self.isolation, self.packages = (), (), ()
        self.jobs: list[Job] = []

    def run_many(self, jobs):  # type: ignore[no-untyped-def]
        self.jobs += jobs
        return [Verdict("passed") for _ in jobs]


def task(*limits: ExecutionLimits | None) -> Task:
    checks = {"tests": Checks("assert f() == 1", ("f",))}
    problems = tuple(
        Problem(f"t/{number}", {"prompt": "", "text": "", "tests": ""}, entry_point="f", checks=checks, limits=asked)
        for number, asked in enumerate(limits)
    )
    return Task("mbpp_plus", "chat", problems, TaskRows("mbpp_plus", "here", "0", ()))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"cpu_seconds": 20, "wall_seconds": 60, "memory_mb": 1024}),
        ({"memory_mb": 4096}, {"cpu_seconds": 20, "wall_seconds": 60, "memory_mb": 4096}),
        ({"cpu_seconds": 10.0}, {"cpu_seconds": 10, "wall_seconds": 60, "memory_mb": 1024}),
    ],
)
def test_the_users_limits_hold_and_the_benchmarks_fill_in(given: dict[str, float], expected: dict[str, float]) -> None:
    executor = Recording(ExecutorSettings(**given))  # type: ignore[arg-type]
    plus = task(PLUS, PLUS, HEAVY)
    answers = [Answer(problem.task_id, "```python\ndef f(): return 1\n```") for problem in plus.problems]
    judge_answers(plus, answers, executor)
    used = [job.limits.values() for job in executor.jobs if job.limits is not None]
    assert {name: used[0][name] for name in expected} == expected
    assert used[2]["memory_mb"] == expected["memory_mb"]
    assert used[2]["cpu_seconds"] == given.get("cpu_seconds", 300)
    described = executor.describe({problem.task_id: problem.limits for problem in plus.problems})
    assert described["limits"] == used[0] == used[1]
    assert described["limits_of"] == {"t/2": used[2]}


def test_without_a_benchmarks_own_the_record_is_the_defaults() -> None:
    described = Recording(ExecutorSettings()).describe({"t/0": None})
    assert described["limits"] == DEFAULT_LIMITS.values()
    assert "limits_of" not in described


def test_limits_of_one_program_go_before_the_executors() -> None:
    assert HEAVY.over(PLUS) == HEAVY
    assert ExecutionLimits(memory_mb=5).over(PLUS).values()["cpu_seconds"] == 20


def test_bad_limits_name_their_key() -> None:
    with pytest.raises(UserError, match=r"^limits\.memory_mb: -1 is not a positive number; for example 1024"):
        ExecutionLimits(memory_mb=-1)
    found = list(ExecutorSettings(workers=0, wall_seconds=0).problems())
    assert found[0].startswith("evaluator.executor.workers=0: must be positive")
    assert found[1].startswith("evaluator.executor.wall_seconds: 0 is not a positive number; for example 20.0")
