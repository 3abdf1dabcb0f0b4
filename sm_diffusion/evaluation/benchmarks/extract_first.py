"""What an answer says by the simple rules of lm-evaluation-harness and its forks that evaluate diffusion models.

Code: what follows the first line that opens a Python block, up to the next fence; an answer without one as a whole.
GSM8K: the last number. MATH: the last boxed expression. The rules of the authors of soft-masking are in `released`.
"""

from __future__ import annotations

from sm_diffusion.evaluation.benchmarks.extract import NOTHING, Extracted, last_boxed, numbers_in

_OPENING, _FENCE = "```python\n", "```"


def first_block(answer: str) -> Extracted:
    """`how` is first_block, whole (no block opened) or none."""
    _, opened, after = answer.partition(_OPENING)
    code = (after if opened else answer).split(_FENCE)[0]
    if not code.strip():
        return NOTHING
    return Extracted(code, "first_block" if opened else "whole")


def last_number(answer: str) -> Extracted:
    """`how` is last_number or none."""
    numbers = numbers_in(answer)
    return Extracted(numbers[-1], "last_number") if numbers else NOTHING


def boxed(answer: str) -> Extracted:
    """`how` is boxed or none."""
    found = last_boxed(answer)
    return NOTHING if found is None else Extracted(found, "boxed")
