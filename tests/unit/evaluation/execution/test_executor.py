"""The executor on well-behaved and plainly wrong programs: verdicts, what crosses, limits, user mistakes."""

from __future__ import annotations

import math
import sys
from decimal import Decimal
from fractions import Fraction

import pytest

from sm_diffusion.evaluation.execution import executor as code_exec
from sm_diffusion.evaluation.execution.executor import STATUSES, Checks, Executor, Job
from sm_diffusion.evaluation.execution.limits import ExecutionLimits
from sm_diffusion.evaluation.execution.rpc import decode, encode
from sm_diffusion.types import UserError

QUICK = ExecutionLimits(cpu_seconds=5, wall_seconds=15, memory_mb=512)


@pytest.fixture(scope="module")
def executor():
    try:
        return Executor(allow_code_execution=True, limits=QUICK)
    except UserError as error:
        pytest.skip(str(error))


def run(executor, program, code, names=("f",), **kwargs):
    return executor.run_untrusted(program, Checks(code=code, names=names, **kwargs))


def test_refuses_without_opt_in():
    with pytest.raises(UserError, match="set allow_code_execution=true") as info:
        Executor(allow_code_execution=False)
    assert "\n" not in str(info.value)
    with pytest.raises(UserError, match="allow_code_execution"):
        Executor(allow_code_execution=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["cpu_seconds", "wall_seconds", "memory_mb", "file_mb", "max_processes", "output_kb"])
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "3"])
def test_bad_limits_name_the_limit(name, value):
    with pytest.raises(UserError, match=f"limits.{name}: .*positive number"):
        ExecutionLimits(**{name: value})


def test_unknown_mechanism_and_workers():
    with pytest.raises(UserError, match="choose from namespaces, uid, landlock, seccomp"):
        Executor(allow_code_execution=True, mechanisms=("magic",))
    with pytest.raises(UserError, match="workers: 0"):
        Executor(allow_code_execution=True, workers=0)


def test_no_sandbox_is_refused():
    with pytest.raises(UserError, match="no working sandbox"):
        Executor(allow_code_execution=True, mechanisms=())


@pytest.mark.parametrize(
    ("program", "status", "words"),
    [
        ("def f(x): return x + 1", "passed", ""),
        ("def f(x): return x", "failed", "assert f(1) == 2"),
        ("def f(x): raise KeyError('k')", "exception", "KeyError"),
        ("def f(x): assert False", "exception", "AssertionError"),
        ("def f(x) return", "exception", "SyntaxError"),
        ("def g(x): return x + 1", "exception", "defines no `f`"),
        ("def f(x): return f(x)", "exception", "RecursionError"),
        ("import os\nos.abort()", "exited", "exit code"),
        ("", "exception", "NameError"),
        ("f = 2", "failed", "not callable"),
        ("import no_such_module", "exception", "ModuleNotFoundError"),
        ("def f(x):\n l = []\n l.append(l)\n return l", "exception", "RecursionError"),
        ("def f(x):\n class E(Exception): pass\n raise E('own')", "exception", "E: own"),
        ("def f(x): raise UnicodeDecodeError('utf-8', b'', 0, 1, 'r')", "exception", "Unicode"),
        ("def f(x): return 'x' * (1 << 25)", "exception", "at most"),
    ],
)
def test_verdicts(executor, program, status, words):
    verdict = run(executor, program, "assert f(1) == 2")
    assert verdict.status == status
    assert words in verdict.detail
    assert "\n" not in verdict.detail
    assert verdict.passed == (status == "passed")
    assert verdict.status in STATUSES
    assert "resource limits" in verdict.isolation


VALUES = [
    None, True, False, 0, -7, 1 << 53, -(1 << 53), 10**5000, 1.5, -0.0, math.inf, 1 + 2j, "a\ud800\n", b"\x00\xff",
    [], [1, [2.0, (3,)]], (), {1, "a"}, frozenset({2}), {1: "a", (2, 3): {None: []}}, range(1, 9, 2),
    Decimal("1.10"), Fraction(1, 3),
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_values_cross_unchanged(value):
    again = decode(encode(value, pytest.fail), pytest.fail)
    assert again == value
    assert type(again) is type(value)
    assert math.isnan(decode(encode(math.nan, pytest.fail), pytest.fail))


def test_subclasses_decay_and_the_rest_is_referred():
    class Liar(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    again = decode(encode(Liar(3), pytest.fail), pytest.fail)
    assert type(again) is int
    assert again == 3
    assert again != 4
    assert encode(object(), lambda value: ["h", 7]) == ["h", 7]


@pytest.mark.parametrize("form", [[], ["?"], ["l", ["?"]], {"a": 1}, 1.5, ["d", 1], ["T", "int"], ["h", 0]])
def test_malformed_values_are_refused(form):
    def refuse(key):
        raise ValueError(key)

    with pytest.raises(ValueError):
        decode(form, refuse)


def test_objects_of_the_program_stay_there(executor):
    program = """
class Node:
    def __init__(self, value): self.value, self.next = value, None
    def __eq__(self, other): return True
    __hash__ = None
def total(node):
    return node.value + (total(node.next) if node.next else 0)
def squares(n):
    return (i * i for i in range(n))
def same(node): return node
"""
    names = ("Node", "total", "squares", "same")
    code = """
root = Node(1)
root.next = Node(2)
root.next.next = Node(4)
assert total(root) == 7 and root.next.value == 2
assert list(squares(4)) == [0, 1, 4, 9] and sum(squares(3)) == 5
assert root != 7 and not (root == 7) and not (7 == root) and root != Node(1) and same(root) != 1
"""
    assert run(executor, program, code, names).status == "passed"


def test_changed_arguments_are_written_back(executor):
    program = """
def f(a, b, c): a.sort(); b['k'] = 2; c.add(9)
def g(a): a = [0]
"""
    code = """
a, b, c = [3, 1, 2], {}, {1}
f(a, b, c)
assert a == [1, 2, 3] and b == {'k': 2} and c == {1, 9}
g(a)
assert a == [1, 2, 3]
"""
    assert run(executor, program, code, ("f", "g")).status == "passed"


def test_types_builtins_keywords_and_numpy(executor):
    program = """
def f(kind, value=1): return isinstance(value, kind)
def g(function, values): return function(values)
def h():
    import numpy
    return numpy.int64(3), numpy.float64(0.5), numpy.bool_(True)
"""
    code = "assert f(int) is True and f(str, value=1) is False and g(max, [1, 5]) == 5"
    assert run(executor, program, code, ("f", "g")).status == "passed"
    if "numpy" in executor.packages:
        assert run(executor, program, "assert h() == (3, 0.5, True) and type(h()[0]) is int", ("h",)).passed


def test_helpers_of_the_tests_cannot_be_replaced(executor):
    """The preamble's `helper` is what the tests see, whatever the program calls `helper`."""
    program = "def helper(x): return True\ndef f(x): return x"
    assert run(executor, program, "assert helper(f(1))", preamble="def helper(x): return x == 2").status == "failed"


def test_a_test_cannot_swallow_the_end_of_the_program(executor):
    code = "try:\n    f(1)\nexcept Exception:\n    pass"
    assert run(executor, "import os\ndef f(x): os._exit(0)", code).status == "exited"


def test_main_guard_does_not_run_and_prints_are_kept(executor):
    program = "print('hello')\ndef f(x): return x + 1\nif __name__ == '__main__': raise SystemExit"
    verdict = run(executor, program, "assert f(1) == 2")
    assert verdict.passed
    assert verdict.output_head == "hello\n"


def test_sets_of_strings_have_one_order_everywhere(executor):
    program = "def f(x): return list(set(x))"
    code = "words = [chr(97 + i) * 3 for i in range(20)]\nassert f(words) == list(set(words))"
    assert run(executor, program, code).passed


def test_run_many_keeps_the_order_and_own_limits(executor):
    jobs = [Job(f"def f(): return {i}", Checks("assert f() % 2 == 0", ("f",))) for i in range(4)]
    tight = ExecutionLimits(cpu_seconds=1, wall_seconds=2)
    jobs.append(Job("def f():\n while True: pass", Checks("f()", ("f",)), tight))
    assert [v.status for v in executor.run_many(jobs)] == ["passed", "failed", "passed", "failed", "timeout"]


def test_harness_trouble_is_an_error_and_no_pass(executor, monkeypatch):
    monkeypatch.setattr(code_exec, "_worker_command", lambda: [sys.executable, "-c", "raise SystemExit('broken')"])
    verdict = run(executor, "def f(x): return x + 1", "assert f(1) == 2")
    assert verdict.status == "error"
    assert not verdict.passed


def test_description_is_complete(executor):
    described = executor.describe()
    assert described["limits"]["memory_mb"] == 512
    assert described["mechanisms"]
    assert described["isolation"]
