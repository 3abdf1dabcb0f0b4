"""Tests of the code benchmarks as `Checks`: what runs in the judge and which names come from the judged program.

Every helper and import the tests need is taken from the benchmark (the prompt, the reference solution), never from
the program: a program that redefines a helper the tests use changes nothing.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from typing import Any

from sm_diffusion.evaluation.code_exec import Checks
from sm_diffusion.types import UserError

# Comparison of EvalPlus 0.1 (the release MBPP+ of November 2023 belongs to): equal, or close where the expected value
# is a float or a flat sequence of floats (absolute 1e-6) or the problem names a tolerance; relative 1e-7 is added.
_COMPARE = """
import copy
nan, inf = float("nan"), float("inf")

def is_float(value):
    return isinstance(value, float)

def close(got, expected, atol):
    if isinstance(expected, (list, tuple)):
        if not isinstance(got, (list, tuple)) or len(got) != len(expected):
            return False
        return all(close(one, other, atol) for one, other in zip(got, expected))
    if not isinstance(got, (int, float, complex)) or not isinstance(expected, (int, float, complex)):
        return got == expected
    return got == expected or (got != got and expected != expected) or abs(got - expected) <= atol + 1e-7 * abs(expected)

def same(got, expected, atol):
    flat = isinstance(expected, (list, tuple)) and all(is_float(item) for item in expected)
    if atol == 0 and (is_float(expected) or flat):
        atol = 1e-6
    return got == expected or (atol != 0 and close(got, expected, atol))

def agree(program, reference, inputs, atol):
    for number, args in enumerate(inputs):
        expected = reference(*copy.deepcopy(args))
        got = program(*copy.deepcopy(args))
        assert same(got, expected, atol), f"input {number}: {str(got)[:60]!r} is not {str(expected)[:60]!r}"
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
    checks = {}
    for label in ("base", "plus"):
        inputs = row[f"{label}_input"] if isinstance(row[f"{label}_input"], list) else json.loads(row[f"{label}_input"])
        if label == "base" and len(examples) == len(inputs):
            restored = examples
        else:
            restored = [_restore_arguments(arguments, examples) for arguments in inputs]
        call = f"agree({entry}, reference_solution, {restored!r}, {atol!r})"
        if entry == "find_zero" and "assertion" not in row:
            call = f"agree_root({entry}, poly, {restored!r}, {atol!r})"
        checks[label] = Checks(code=call, names=(entry,), preamble=prelude)
    return checks


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
    return [restore_types(value, column) for value, column in zip(arguments, columns, strict=True)]


def restore_types(value: Any, examples: list[Any]) -> Any:
    """Give JSON `value` the types of `examples`, values of the same argument written as Python literals.

    A list becomes a tuple where the examples are tuples, a set where they are sets (an empty one the empty dict where
    they have one), its items follow all items of the examples; a string becomes complex, an int float where
    the examples are nothing else. Where the examples disagree or there are none, the value stays as it is.
    """
    kinds = {type(example) for example in examples}
    if isinstance(value, list):
        inner = [item for example in examples if isinstance(example, (list, tuple, set)) for item in example]
        items = [restore_types(item, inner) for item in value]
        containers = kinds & {list, tuple, set}
        if not items and dict in kinds and list not in kinds and tuple not in kinds:
            return {}
        kind: Any = containers.pop() if len(containers) == 1 else list
        return kind(items)
    if isinstance(value, dict):
        inner = [item for example in examples if isinstance(example, dict) for item in example.values()]
        keys = [key for example in examples if isinstance(example, dict) for key in example]
        as_int = bool(keys) and all(type(key) is int for key in keys)
        return {int(key) if as_int else key: restore_types(item, inner) for key, item in value.items()}
    if isinstance(value, str) and kinds and kinds <= {complex, int, float} and complex in kinds:
        return complex(value)
    return value
