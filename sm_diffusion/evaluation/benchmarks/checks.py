"""Tests of the code benchmarks as `Checks`: what runs in the judge and which names come from the judged program.

Every helper and import the tests need is taken from the benchmark (the prompt, the reference solution), never from
the program: a program that redefines a helper the tests use changes nothing.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

from sm_diffusion.evaluation.execution.executor import Checks
from sm_diffusion.types import UserError

# Comparison of EvalPlus 0.1 (the release MBPP+ of November 2023 belongs to): equal, or close where the expected value
# is a float or a flat sequence of floats (absolute 1e-6) or the problem names a tolerance; relative 1e-7 is added.
_COMPARE = """
import copy
nan, inf = float("nan"), float("inf")
MOST_ITEMS = 60000  # inputs whose right answer is larger than what may cross are left out (MBPP+ 255 has some)

def is_float(value):
    return isinstance(value, float)

def close(got, expected, atol):
    if isinstance(expected, (list, tuple)):
        if not isinstance(got, (list, tuple)) or len(got) != len(expected):
            return False
        return all(close(one, other, atol) for one, other in zip(got, expected))
    if not isinstance(got, (int, float, complex)) or not isinstance(expected, (int, float, complex)):
        return got == expected
    if got == expected or (got != got and expected != expected):
        return True
    return abs(got - expected) <= atol + 1e-7 * abs(expected)

def as_set(value):
    try:
        return set(value)
    except TypeError:
        return value

def same(got, expected, atol, mode):
    if mode == "truth":
        return bool(got) == bool(expected)
    if mode == "set":
        return as_set(got) == as_set(expected)
    flat = isinstance(expected, (list, tuple)) and all(is_float(item) for item in expected)
    if atol == 0 and (is_float(expected) or flat):
        atol = 1e-6
    return got == expected or (atol != 0 and close(got, expected, atol))

def agree(program, reference, inputs, atol, mode):
    for number, args in enumerate(inputs):
        try:
            expected = reference(*copy.deepcopy(args))
        except MemoryError:
            continue
        if isinstance(expected, (list, tuple, set, dict, str)) and len(expected) > MOST_ITEMS:
            continue
        got = program(*copy.deepcopy(args))
        assert same(got, expected, atol, mode), f"input {number}: {str(got)[:60]!r} is not {str(expected)[:60]!r}"
"""

# HumanEval/32 asks for any root: its value is judged by the polynomial, not by the reference's root.
_ROOT_COMPARE = """
def agree_root(program, poly, inputs, atol):
    for number, (coefficients,) in enumerate(inputs):
        got = program(list(coefficients))
        assert abs(poly(coefficients, got)) <= atol, f"input {number}: {got!r} is no root"
"""


def _parse(source: str, what: str) -> ast.Module:
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise UserError(f"{what}: its Python source does not parse: {error}") from None


def _loaded_names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _definitions(tree: ast.Module) -> list[str]:
    return [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]


def prelude_of(prompt: str, entry_point: str) -> str:
    """Imports and helpers of a HumanEval prompt: all of it but the function to be written.

    Raises UserError when the prompt does not parse (its function has a docstring for a body).
    """
    tree = _parse(prompt, f"prompt of {entry_point}")
    kept = [node for node in tree.body if not (isinstance(node, ast.FunctionDef) and node.name == entry_point)]
    return "".join(ast.unparse(node) + "\n" for node in kept)


def humaneval_checks(row: Mapping[str, Any]) -> Checks:
    """`check(candidate)` of HumanEval, or of HumanEval+ in the hub's layout."""
    entry = str(row["entry_point"])
    code = f"{row['test']}\n\ncheck({entry})\n"
    return Checks(code=code, names=(entry,), preamble=prelude_of(str(row["prompt"]), entry))


def mbpp_checks(row: Mapping[str, Any]) -> Checks:
    """`test_list` of MBPP after its `test_setup_code`, or `test` of MBPP+ in the hub's layout.

    The names are those the reference defines and the tests use (one function; with a class in tasks 367, 601, 927).
    """
    what = f"MBPP {row['task_id']}"
    if "test" in row:
        code = str(row["test"])
    else:
        code = "\n".join([str(row["test_setup_code"]).replace("\r\n", "\n"), *row["test_list"]])
    reference, used = _parse(str(row["code"]), what), _loaded_names(_parse(code, what))
    names = tuple(name for name in _definitions(reference) if name in used)
    if not names:
        raise UserError(f"{what}: its tests use nothing its reference code defines")
    imports = [ast.unparse(node) for node in reference.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    return Checks(code=code, names=tuple(dict.fromkeys(names)), preamble="\n".join(imports))


def plus_checks(row: Mapping[str, Any]) -> dict[str, Checks]:
    """Base and plus inputs of EvalPlus' released layout, judged against the reference solution, which the judge runs.

    JSON has no tuples, sets or complex numbers: where the row has an `assertion` (MBPP+), the types of the literal
    arguments there say what the lists stand for, see `restore_types`.
    """
    entry, atol = str(row["entry_point"]), float(row["atol"])
    solution = str(row["canonical_solution"])
    if "assertion" not in row:  # HumanEval+: the solution continues the prompt
        solution = str(row["prompt"]) + solution
    examples = _literal_calls(str(row.get("assertion", "")), entry)
    reference = f"{solution}\nreference_solution = {entry}\n"
    prelude = f"{_COMPARE}{_ROOT_COMPARE}\n{reference}"
    mode, checks = _compare_mode(str(row.get("assertion", "")), entry), {}
    for label in ("base", "plus"):
        inputs = list(row[f"{label}_input"])  # `{}` in the released file: none
        if label == "base" and len(examples) == len(inputs):
            restored = examples
        else:
            restored = [_restore_arguments(arguments, examples) for arguments in inputs]
        call = f"agree({entry}, reference_solution, {restored!r}, {atol!r}, {mode!r})"
        if entry == "find_zero" and "assertion" not in row:
            call = f"agree_root({entry}, poly, {restored!r}, {atol!r})"
        checks[label] = Checks(code=call, names=(entry,), preamble=prelude)
    return checks


# MBPP+ problems whose reference builds its sequence from a set while their assertions do not say so.
_UNORDERED = {"similar_elements", "extract_singly", "find_dissimilar", "Diff"}


def _compare_mode(assertion: str, entry_point: str) -> str:
    """`set` where the row's own assertions compare as sets, `truth` where they only ask for true or false."""
    calls = {f"{entry_point}(", f"not {entry_point}("}
    tests = [ast.unparse(node.test) for node in _parse(assertion, entry_point).body if isinstance(node, ast.Assert)]
    if entry_point in _UNORDERED or any(test.startswith(f"set({entry_point}(") for test in tests):
        return "set"
    bare = [isinstance(ast.parse(test, mode="eval").body, (ast.Call, ast.UnaryOp)) for test in tests]
    truth = bool(tests) and all(bare) and all(any(test.startswith(call) for call in calls) for test in tests)
    return "truth" if truth else "equal"


def _literal_calls(assertion: str, entry_point: str) -> list[list[Any]]:
    """Arguments of each call of the entry point, in order; constant arithmetic such as `14 * 14` is evaluated."""
    calls = []
    for node in ast.walk(_parse(assertion, entry_point)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == entry_point:
            calls.append([_constant(argument) for argument in node.args])
    return calls


def _constant(node: ast.expr) -> Any:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        return _constant(node.left) * _constant(node.right)
    return ast.literal_eval(node)


def _restore_arguments(arguments: list[Any], examples: list[list[Any]]) -> list[Any]:
    columns = [[example[index] for example in examples if index < len(example)] for index in range(len(arguments))]
    return [
        _number(value, column)
        if isinstance(value, str)
        else restore_types(value, column, deep=_only_nested_tuples(column))
        for value, column in zip(arguments, columns, strict=True)
    ]


def _number(value: str, examples: list[Any]) -> Any:
    """An argument stored as a string where all examples are numbers: tasks 124 and 252 take complex numbers."""
    kinds = {type(example) for example in examples}
    if not kinds or not kinds <= {complex, int, float}:
        return value
    try:
        return complex(value) if complex in kinds or "j" in value else float(value)
    except ValueError:
        return value


def restore_types(value: Any, examples: list[Any], *, deep: bool = False) -> Any:
    """Give JSON `value` the types of `examples`, values of the same argument written as Python literals.

    A list becomes a tuple where the examples are tuples, a set where they are sets (an empty one {} where they have
    one); its items follow all items of the examples. With `deep` every list becomes a tuple. Keys of dicts stay
    strings, as EvalPlus has them. Where the examples disagree or there are none, the value stays as it is.
    """
    kinds = {type(example) for example in examples}
    if isinstance(value, list):
        inner = [item for example in examples if isinstance(example, (list, tuple, set)) for item in example]
        items = [restore_types(item, inner, deep=deep) for item in value]
        if not items and dict in kinds and not kinds & {list, tuple}:
            return {}
        here = {tuple} if deep else kinds & {list, tuple, set}
        kind: Any = here.pop() if len(here) == 1 else list
        return kind(items)
    if isinstance(value, dict):
        inner = [item for example in examples if isinstance(example, dict) for item in example.values()]
        return {key: restore_types(item, inner) for key, item in value.items()}
    return value


def _only_nested_tuples(examples: list[Any]) -> bool:
    """True where some example is a tuple within a tuple and no list or set occurs: tuples of any depth are meant."""
    nested, waiting = False, list(examples)
    while waiting:
        example = waiting.pop()
        if isinstance(example, (list, set, dict)):
            return False
        if isinstance(example, tuple):
            nested = nested or any(isinstance(item, tuple) for item in example)
            waiting.extend(example)
    return nested
