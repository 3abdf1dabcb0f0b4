"""What a model's answer says: the code in it, the number it ends on, the expression it boxes.

Each extractor returns `Extracted(value, how)`; `value` is None where nothing was found, which scores as a failed
extraction and is counted in the protocol. `how` names the rule that fired.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import NamedTuple

_FENCE = re.compile(r"^[ \t]*(```+|~~~+)[ \t]*([\w+.#-]*)[^\n]*$", re.MULTILINE)
_PYTHON = {"", "python", "python3", "py", "py3"}
_CODE_START = re.compile(r"^(?:def |class |import |from \w|@\w|async def )", re.MULTILINE)
_NUMBER = re.compile(r"[-+]?\s?\$?\s?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\s?\$?\.\d+")
_ANSWER_IS = re.compile(r"answer\s*(?:is|:|=)\s*:?\s*", re.IGNORECASE)


class Extracted(NamedTuple):
    """value: what was found, None if nothing. how: the rule, `none` if nothing."""

    value: str | None
    how: str


NOTHING = Extracted(None, "none")


# ------------------------------------------------------------------------------------------------------------ code


def truncate_at(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """Text before the first stop string that occurs, and that string (None if none does). Empty stops are ignored."""
    found = [(text.index(stop), stop) for stop in stops if stop and stop in text]
    if not found:
        return text, None
    position, stop = min(found)
    return text[:position], stop


def _fenced_blocks(text: str) -> list[tuple[str, str, bool]]:
    """(language, content, closed) of each fenced block, in order; the last may be open."""
    blocks, position = [], 0
    while opening := _FENCE.search(text, position):
        marker, language = opening.group(1), opening.group(2).lower()
        closing = re.compile(rf"^[ \t]*{re.escape(marker)}[ \t]*$", re.MULTILINE).search(text, opening.end())
        start = min(opening.end() + 1, len(text))
        blocks.append((language, text[start : closing.start() if closing else len(text)], closing is not None))
        position = closing.end() if closing else len(text)
    return blocks


def _parses(code: str) -> bool:
    try:
        ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _longest_program(text: str) -> str:
    """Longest prefix of whole lines that parses; the text itself when none does. Tries at most 200 prefixes."""
    lines = text.split("\n")
    for end in range(len(lines), max(0, len(lines) - 200), -1):
        candidate = "\n".join(lines[:end])
        if candidate.strip() and _parses(candidate):
            return candidate
    return text


def defines(entry_point: str, code: str) -> bool:
    """True where `code` holds a definition of that name."""
    pattern = rf"^\s*(?:async\s+)?(?:def|class)\s+{re.escape(entry_point)}\b"
    return bool(entry_point) and re.search(pattern, code, re.MULTILINE) is not None


def extract_code(answer: str, entry_point: str | None = None) -> Extracted:
    """The Python program in a chat answer.

    The first of: a closed fenced block that defines `entry_point`, the longest closed Python block, an open block
    (the answer was cut off), and unfenced text from the first line that starts a definition or import to the last line
    with which it parses. `how` is fenced, open_fence, unfenced or none.
    """
    blocks = [(code, closed) for language, code, closed in _fenced_blocks(answer) if language in _PYTHON]
    closed_blocks = [code for code, closed in blocks if closed and code.strip()]
    if entry_point is not None:
        defining = [code for code in closed_blocks if defines(entry_point, code)]
        closed_blocks = defining or closed_blocks
        open_blocks = [code for code, closed in blocks if not closed and defines(entry_point, code)]
        if not defining and open_blocks:
            return Extracted(open_blocks[-1], "open_fence")
    if closed_blocks:
        return Extracted(max(closed_blocks, key=len), "fenced")
    open_code = [code for code, closed in blocks if not closed and code.strip()]
    if open_code:
        return Extracted(open_code[-1], "open_fence")
    start = _CODE_START.search(answer)
    if start is None:
        return NOTHING
    return Extracted(_longest_program(answer[start.start() :]), "unfenced")


def continue_prompt(prompt: str, continuation: str, stops: Sequence[str]) -> Extracted:
    """Program of a completion model: prompt and continuation up to the first stop string. None if that is empty."""
    body, _ = truncate_at(continuation, stops)
    return Extracted(prompt + body, "completion") if body.strip() else NOTHING


# --------------------------------------------------------------------------------------------------------- numbers


def normalize_number(text: str) -> str | None:
    """Canonical decimal of a number such as `$1,234.50`, `42%`, `- 3`: `1234.5`, `42`, `-3`; None if it is none."""
    cleaned = re.sub(r"[\s,$%]|\\[!,;:]|\\%|\\\$", "", text.replace("−", "-")).rstrip(".")
    try:
        value = Decimal(cleaned)
    except InvalidOperation:
        return None
    if not value.is_finite() or abs(value.adjusted()) > 1000:
        return None
    return format(value.normalize() + 0, "f")


def gsm8k_gold(answer: str) -> str:
    """Gold answer of a GSM8K reference solution: the number after its last `####`. Raises ValueError without one."""
    head, mark, tail = answer.rpartition("####")
    number = normalize_number(tail.strip().split("\n")[0])
    if not mark or number is None:
        raise ValueError(f"no `#### number` in the reference solution {head[-40:]!r}")
    return number


def numbers_in(text: str) -> list[str]:
    """Canonical decimals of all numbers, in order."""
    return [found for match in _NUMBER.finditer(text) if (found := normalize_number(match.group())) is not None]


def _first_number(text: str) -> str | None:
    match = _NUMBER.search(text)
    return normalize_number(match.group()) if match else None


def gsm8k_answer(text: str) -> Extracted:
    r"""Final number of a model's answer: the last `\boxed{}`, else after the last `####`, else after the last
    "answer is", else the last number. `how` is boxed, hashes, answer_is, last_number or none.
    """
    boxed = last_boxed(text)
    if boxed is not None and (number := _first_number(boxed)) is not None:
        return Extracted(number, "boxed")
    _, mark, tail = text.rpartition("####")
    if mark and (number := _first_number(tail.strip().split("\n")[0])) is not None:
        return Extracted(number, "hashes")
    phrases = list(_ANSWER_IS.finditer(text))
    if phrases and (number := _first_number(text[phrases[-1].end() :].split("\n")[0])) is not None:
        return Extracted(number, "answer_is")
    numbers = numbers_in(text)
    return Extracted(numbers[-1], "last_number") if numbers else NOTHING


# ------------------------------------------------------------------------------------------------------------ math


def _braced(text: str, start: int) -> str | None:
    """Content of the balanced `{...}` that opens at `start`; escaped braces do not count. None if it never closes."""
    depth, position = 0, start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2
            continue
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return text[start + 1 : position]
        position += 1
    return None


def last_boxed(text: str) -> str | None:
    r"""Content of the last complete `\boxed{...}` or `\fbox{...}` (or `\boxed x`); None if there is none."""
    for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*", text))):
        if text[match.end() : match.end() + 1] == "{":
            content = _braced(text, match.end())
            if content is not None:
                return content.strip()
        elif short := re.match(r"[^\s$.,]+", text[match.end() :]):
            return short.group()
    return None


def math_answer(text: str) -> Extracted:
    r"""Final expression of a model's answer to a MATH problem: the last `\boxed{}`, else what follows the last
    "answer is". `how` is boxed, answer_is or none.
    """
    boxed = last_boxed(text)
    if boxed is not None:
        return Extracted(boxed, "boxed")
    phrases = list(_ANSWER_IS.finditer(text))
    rest = text[phrases[-1].end() :].split("\n")[0].strip() if phrases else ""
    rest = re.split(r"\.(?:\s|$)", rest)[0].strip(" $*")
    return Extracted(rest, "answer_is") if rest else NOTHING


_UNITS = r"(?:cm|mm|km|m|ft|feet|foot|inch|inches|in|miles?|units?|dollars?|cents?|degrees?|hours?|minutes?|seconds?)"
_REWRITES: tuple[tuple[str, str], ...] = (
    (r"\\(?:left|right|displaystyle|limits)(?![a-zA-Z])", ""),
    (r"\\[!,;: ]|~|\\quad|\\qquad", ""),
    (r"\\(?:dfrac|tfrac|cfrac)", r"\\frac"),
    (r"\\(?:text|mbox|mathrm|textrm)\{\s*(?:square|cubic)?\s*" + _UNITS + r"\s*\}(?:\^\{?[23]\}?)?", ""),
    (r"\\(?:text|mbox|mathrm|textbf|textit|mathbf)\{([^{}]*)\}", r"\1"),
    (r"\^\{?\s*\\circ\s*\}?|\\degree", ""),
    (r"\\?[$%]", ""),
    (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)\s*\{", r"\\frac{\1}{"),
    (r"\\frac\s*\{([^{}]*)\}\s*(\d)", r"\\frac{\1}{\2}"),
    (r"\\sqrt\s*(\w)", r"\\sqrt{\1}"),
    (r"\s+", ""),
)


def normalize_math(text: str) -> str:
    """One spelling of a LaTeX answer: spacing, `dfrac`, `\\frac12`, text and units, `$`, `%`, degrees, thousands
    commas, a leading `x =`, a final full stop, `a/b` for integers, and a missing zero before a decimal point.
    """
    value = text.strip().strip("$")
    for pattern, replacement in _REWRITES:
        value = re.sub(pattern, replacement, value)
    if re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", value):
        value = value.replace(",", "")
    value = value.rstrip(".")
    value = re.sub(r"^[a-zA-Z](?:\\in|=)(?=.)", "", value)
    value = re.sub(r"^(-?\d+)/(\d+)$", r"\\frac{\1}{\2}", value)
    value = re.sub(r"^-\\frac\{(\d+)\}", r"\\frac{-\1}", value)
    return re.sub(r"(?<![\d.])\.(\d)", r"0.\1", value)


def _rational(text: str) -> Fraction | None:
    """Exact value of a decimal or an integer fraction, else None."""
    fraction = re.fullmatch(r"\\frac\{(-?\d+)\}\{(-?\d+)\}", text)
    if fraction:
        return Fraction(int(fraction[1]), int(fraction[2])) if int(fraction[2]) else None
    return Fraction(text) if re.fullmatch(r"-?\d{1,400}(\.\d{1,400})?", text) else None


def same_math(answer: str, gold: str) -> bool:
    """True where both read the same once normalised, or are the same rational number (`0.5` and `1/2`)."""
    one, other = normalize_math(answer), normalize_math(gold)
    if one == other:
        return bool(one)
    left, right = _rational(one), _rational(other)
    return left is not None and left == right
