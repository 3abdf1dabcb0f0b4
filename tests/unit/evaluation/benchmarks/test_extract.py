"""Extraction of code, numbers and boxed expressions from answers."""

from __future__ import annotations

import ast
import json
import re
from decimal import Decimal

import pytest

from sm_diffusion.evaluation.benchmarks.extract import (
    continue_prompt,
    extract_code,
    gsm8k_answer,
    gsm8k_gold,
    last_boxed,
    math_answer,
    normalize_math,
    normalize_number,
    same_math,
    truncate_at,
)
from tests.helpers.tasks import real

F = "def f(x):\n    return x\n"


@pytest.mark.parametrize(
    ("answer", "how"),
    [
        (f"Sure!\n```python\n{F}```\nDone.", "fenced"),
        (f"```\n{F}```", "fenced"),
        (f"```py\r\n{F}```".replace("\r", ""), "fenced"),
        (f"~~~python\n{F}~~~", "fenced"),
        (f"````python\n{F}````", "fenced"),
        (f"```python\nimport os\n```\ntext\n```python\n{F}```\n```python\nprint(f(1), 'an example')\n```", "fenced"),
        (f"```bash\npip install x\n```\n```python\n{F}```", "fenced"),
        (f"```python\n{F}", "open_fence"),
        (f"```python\nprint(1)\n```\nBetter:\n```python\n{F}", "open_fence"),
        (F, "unfenced"),
        (f"Here it is:\n\n{F}\nThis returns x, as asked.", "unfenced"),
        (f"The code:\n{F}```", "unfenced"),
    ],
)  # fmt: skip
def test_code_is_found(answer, how):
    found = extract_code(answer, "f")
    assert found.how == how
    namespace = {}
    exec(found.value, namespace)
    assert namespace["f"](3) == 3


@pytest.mark.parametrize("answer", ["", "I cannot do that.", "```\n```", "``` ```", "```json\n{}\n```"])
def test_no_code(answer):
    assert extract_code(answer, "f") == (None, "none")


def test_longest_block_without_an_entry_point():
    answer = "```python\nx = 1\n```\n```python\nx = 1\ny = 2\n```"
    assert extract_code(answer).value == "x = 1\ny = 2\n"
    assert extract_code(answer, "f").value == "x = 1\ny = 2\n"


def test_fence_inside_a_string_of_the_program_is_kept():
    answer = 'Sure:\n```python\ndef f(x):\n    return "```" + x\n```\n'
    assert 'return "```" + x' in extract_code(answer, "f").value


def test_completion_and_stops():
    assert truncate_at("ab\ndef c", ["\ndef ", "b"]) == ("a", "b")
    assert truncate_at("abc", ["", "x"]) == ("abc", None)
    assert (
        continue_prompt("def f():\n", "    return 1\n\ndef g(): pass", ["\ndef "]).value == "def f():\n    return 1\n"
    )
    assert continue_prompt("def f():\n", " \n\ndef g(): pass", ["\ndef "]).value is None


def test_real_reference_code_survives_every_wrapping():
    rows = [json.loads(line) for line in real("mbpp.jsonl").read_text().splitlines()][::7]
    for row in rows:
        code = row["code"].replace("\r\n", "\n")
        name = next(node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef))
        for answer in (f"Here:\n```python\n{code}\n```\nIt works.", f"```python\n{code}", f"Sure.\n{code}\nIt works."):
            found = extract_code(answer, name)
            assert found.value is not None
            assert f"def {name}" in found.value
            ast.parse(found.value)


def test_gold_answers_of_all_of_gsm8k():
    rows = [json.loads(line) for line in real("gsm8k_test.jsonl").read_text().splitlines()]
    assert len(rows) == 1319
    for row in rows:
        raw = re.search(r"#### (.*)$", row["answer"]).group(1).strip()
        gold = gsm8k_gold(row["answer"])
        assert Decimal(gold) == Decimal(raw.replace(",", ""))
        assert gsm8k_answer(row["answer"]) == (gold, "hashes")
        body = row["answer"].split("####")[0]
        for text, how in (
            (f"{body}\nThe final answer is \\boxed{{{raw}}}.", "boxed"),
            (f"{body}\nThe answer is: ${raw}.", "answer_is"),
            (f"{body}\nSo it is **{raw}** dollars.", "last_number"),
            (f"{body}\nHence $\\boxed{{\\${raw}\\text{{ dollars}}}}$", "boxed"),
        ):
            assert gsm8k_answer(text) == (gold, how)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,234", "1234"), ("$1,234.50", "1234.5"), ("42%", "42"), ("-3", "-3"), ("- 3", "-3"), ("−7", "-7"),
        (".5", "0.5"), ("18.00", "18"), ("100", "100"), ("007", "7"), ("0", "0"), ("-0", "0"), ("\\$20", "20"),
        ("3.", "3"), ("1e3", "1000"), ("", None), ("x", None), ("1/2", None), ("nan", None), ("inf", None),
        ("1e999999999", None),
    ],
)  # fmt: skip
def test_numbers(text, value):
    assert normalize_number(text) == value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no number", (None, "none")),
        ("", (None, "none")),
        ("She has 3 apples and 1,200 pears.", ("1200", "last_number")),
        ("The answer is 5. Then the answer is 6.", ("6", "answer_is")),
        ("Answer: $1,000", ("1000", "answer_is")),
        ("The answer is unknown, maybe 9", ("9", "answer_is")),
        ("The answer is unknown.\nMaybe 9", ("9", "last_number")),
        ("\\boxed{3} or rather \\boxed{4}", ("4", "boxed")),
        ("\\boxed{4} and \\boxed{", ("4", "boxed")),
        ("\\boxed{-2.50}", ("-2.5", "boxed")),
        ("x = 3\n#### 12 apples", ("12", "hashes")),
        ("10 - 3 = 7", ("7", "last_number")),
    ],
)
def test_model_answers(text, expected):
    assert gsm8k_answer(text) == expected


def test_gold_without_a_number_is_refused():
    with pytest.raises(ValueError, match="no `#### number`"):
        gsm8k_gold("the answer is 3")


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        (r"\boxed{\left\{1, \{2\}\right\}}", r"\left\{1, \{2\}\right\}"),
        (r"\boxed {a_{b_{c}}}", "a_{b_{c}}"),
        (r"\fbox{7}", "7"),
        (r"\boxed 5$", "5"),
        (r"\boxed{1} \boxed{2", "1"),
        ("none", None),
        (r"\boxed{", None),
    ],
)
def test_boxed(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\frac12", r"\frac{1}{2}"), (r"\dfrac{1}{2}", "1/2"), ("0.5", r"\tfrac12"), (".5", "0.5"),
        (r"-\frac{1}{2}", "-0.5"), (r"\frac{3}4", r"\frac34"), (r"\sqrt2", r"\sqrt{2}"), (r"5\text{ cm}", "5"),
        (r"5\text{ square units}", "5"),
        (r"12\mathrm{cm}^2", "12"), (r"90^\circ", "90"), (r"90^{\circ}", "90"), (r"50\%", "50"),
        (r"\$1,\!000", "1000"), ("1,000", "1000"),
        ("x = 5", "5"), (r"x \in [1,2]", "[1,2]"), (r"\left(1, 2\right)", "(1,2)"), (r"\text{Evelyn}", "Evelyn"),
        (r"\textbf{(A)}", "(A)"), ("5.", "5"), ("5.0", "5"), (r"\frac{4}{8}", r"\frac{1}{2}"), ("$x+1$", "x + 1"),
        (r"2\,\pi", r"2\pi"),
    ],
)  # fmt: skip
def test_same_expression(one, other):
    assert same_math(one, other)
    assert same_math(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [("1", "2"), ("", ""), ("(1,2)", "(12)"), ("1,2", "12"), ("(1,000)", "1000"), (r"\frac{1}{0}", "0"), ("x", "y"),
     ("[1,2)", "[1,2]"), ("1/2", "2/1"), (r"\sqrt{2}", "2"), ("3x", "3"), ("-5", "5")],
)  # fmt: skip
def test_different_expressions(one, other):
    assert not same_math(one, other)


def test_math_answers_and_normal_form():
    assert math_answer(r"Thus \boxed{\frac{1}{2}}") == (r"\frac{1}{2}", "boxed")
    assert math_answer("The final answer is $x = 3$. I hope it is right.") == ("x = 3", "answer_is")
    assert math_answer("I do not know") == (None, "none")
    assert normalize_math(r"$\dfrac{a}{b}\ $") == r"\frac{a}{b}"
