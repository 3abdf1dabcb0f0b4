"""MATH-500 in the protocol `released`: the gold answer's spelling and the library that compares.

Source: minerva_math/utils.py of lm-evaluation-harness 0.4.8 (:76 `process_results`), which spells final answers by the
rules of Minerva (Lewkowycz et al. 2022, arXiv 2206.14858, appendix on MATH) and reports what math_verify
(huggingface/Math-Verify) says of `parse(gold)` and `parse(answer)`. The gold is parsed without dollar signs after those
rules, so tuples, intervals, matrices, texts, surds with a coefficient, percents and mixed numbers count as wrong even
when they are right: "ft" is among the removed units, which makes `\\left` into `\\le` and `\\infty` into `\\iny`.
"""

from __future__ import annotations

import importlib.util
import re
from typing import Any

from sm_diffusion.types import UserError

_NO_ANSWER = "[invalidanswer]"
_HOPE = "I hope it is correct."
_PHRASE = re.compile(r"Final Answer: The final answer is(.*?). I hope it is correct.")
_REPLACED = (
    ("an ", ""), ("a ", ""), (".$", "$"), ("\\$", ""), ("\\ ", ""), (" ", ""), ("mbox", "text"),
    (",\\text{and}", ","), ("\\text{and}", ","), ("\\text{m}", "\\text{}"),
)  # fmt: skip
_REMOVED = (
    "square", "ways", "integers", "dollars", "mph", "inches", "ft", "hours", "km", "units", "\\ldots", "sue", "points",
    "feet", "minutes", "digits", "cents", "degrees", "cm", "gm", "pounds", "meters", "meals", "edges", "students",
    "childrentickets", "multiples", "\\text{s}", "\\text{.}", "\\text{\ns}", "\\text{}^2", "\\text{}^3", "\\text{\n}",
    "\\text{}", "\\mathrm{th}", "^\\circ", "^{\\circ}", "\\;", ",\\!", "{,}", '"', "\\dots",
)  # fmt: skip
_REWRITES = (
    (re.compile(r"(.*?)(\$)(.*?)(\$)(.*)"), r"$\3$"),
    (re.compile(r"(\\text\{)(.*?)(\})"), r"\2"),
    (re.compile(r"(\\textbf\{)(.*?)(\})"), r"\2"),
    (re.compile(r"(\\overline\{)(.*?)(\})"), r"\2"),
    (re.compile(r"(\\boxed\{)(.*)(\})"), r"\2"),
    (re.compile(r"(frac)([^{])(.)"), r"frac{\2}{\3}"),
    (re.compile(r"(sqrt)([^{])"), r"sqrt{\2}"),
)


def minerva_phrase(answer: str) -> str:
    """What stands between "Final Answer: The final answer is" and ". I hope it is correct."; else [invalidanswer]."""
    found = _PHRASE.search(answer + _HOPE)
    return found.group(1).strip() if found else _NO_ANSWER


def minerva_normalized(expression: str) -> str:
    """One spelling of a final answer: what follows its last `=`, without the units, spaces and markup listed above."""
    text = expression.split("=")[-1]
    for old, new in _REPLACED:
        text = text.replace(old, new)
    for word in _REMOVED:
        text = text.replace(word, "")
    for pattern, new in _REWRITES:
        text = pattern.sub(new, text)
    text = text.replace("$", "")
    return text.replace(",", "") if text.replace(",", "").isdigit() else text


def last_boxed(text: str) -> str | None:
    r"""The last `\boxed{...}`, whole, or `\boxed x` up to the next `$`; else the last `\fbox{...}`; else None.

    Braces are counted without regard to escapes.
    """
    if "\\boxed " in text:
        return "\\boxed " + text.split("\\boxed ")[-1].split("$")[0]
    start = max(text.rfind("\\boxed"), -1)
    start = text.rfind("\\fbox") if start < 0 else start
    if start < 0:
        return None
    depth = 0
    for position in range(start, len(text)):
        depth += (text[position] == "{") - (text[position] == "}")
        if text[position] == "}" and depth == 0:
            return text[start : position + 1]
    return None


def gold_boxed(solution: str) -> str:
    """Content of the box of a reference solution. Raises ValueError where it boxes nothing."""
    box = last_boxed(solution)
    if box is None or not box.startswith("\\boxed"):
        raise ValueError(f"no \\boxed answer in the reference solution {solution[-40:]!r}")
    return box.removeprefix("\\boxed ") if box.startswith("\\boxed ") else box[len("\\boxed{") : -1]


def gold_answer(solution: str) -> str:
    """The gold answer of a row: the box of its reference solution, in Minerva's spelling (`process_docs`)."""
    return minerva_normalized(gold_boxed(solution))


def require_math_verify() -> None:
    """Raises UserError where the library that decides MATH-500 is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise UserError(
            "math500: the released protocol judges with the library math_verify; "
            "pip install 'math-verify[antlr4_9_3]', or choose another protocol"
        )


def math_verified(answer: str, gold: str) -> bool:
    """math_verify's word on a whole answer (stop strings cut) and a gold answer in Minerva's spelling.

    Its time limits use signals, so it has to be called in the main thread.
    Raises: UserError without the library.
    """
    require_math_verify()
    import math_verify

    parsed: list[Any] = [math_verify.parse(text) for text in (gold, answer)]
    return bool(math_verify.verify(*parsed))
