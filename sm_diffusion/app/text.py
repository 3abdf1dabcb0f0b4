"""Numbers and tables as people read them on a terminal."""

from __future__ import annotations

import csv
import io
import math
import textwrap
from collections.abc import Sequence

TEXT_WIDTH = 110
CELL_WIDTH = 44


def human(value: float) -> str:
    """1.23e+15 -> 1.23 P, with k M G T P E."""
    for unit in ("", "k", "M", "G", "T", "P", "E", "Z"):
        if abs(value) < 1000 or unit == "Z":
            return f"{value:.3g} {unit}".strip() if unit else f"{value:.3g}"
        value /= 1000
    raise AssertionError("unreachable")


def human_bytes(value: float) -> str:
    """In MiB or GiB."""
    return f"{value / 2**30:,.2f} GiB" if value >= 2**30 else f"{value / 2**20:,.1f} MiB"


def duration(days_: float) -> str:
    """Days, or hours, or minutes, or seconds: whichever is at least 1."""
    for value, unit in ((days_, "days"), (days_ * 24, "hours"), (days_ * 1440, "minutes")):
        if value >= 1:
            return f"{value:,.3g} {unit}"
    return f"{days_ * 86_400:,.3g} seconds"


def number(value: float, digits: int = 4) -> str:
    """A value to so many significant digits; digits 0: with a letter for the power of 1000; NaN is said as such."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if digits == 0:
        for unit in ("", "k", "M", "G", "T", "P", "E"):
            if abs(value) < 999.5:
                return f"{value:.3g}{unit}" if unit or value != int(value) else f"{int(value)}"
            value /= 1000
        return f"{value:.3g}Z"
    decimals = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
    return f"{value:.{min(decimals, 6)}f}"


def text_table(lines: Sequence[Sequence[str]], num_labels: int, break_before: str = "") -> str:
    """Aligned columns, at most TEXT_WIDTH characters wide. What does not fit goes into blocks below one another, each
    beginning with the first `num_labels` columns; the column titled `break_before` then begins a block."""
    lines = [part for line in lines for part in _wrapped(line)]
    widths = [max(len(line[index]) for line in lines) for index in range(len(lines[0]))]
    room = TEXT_WIDTH - sum(width + 2 for width in widths[:num_labels])
    fits = sum(width + 2 for width in widths[num_labels:]) - 2 <= room
    blocks: list[list[int]] = [[]]
    used = 0
    for index in range(num_labels, len(widths)):
        if blocks[-1] and not fits and (used + widths[index] > room or lines[0][index] == break_before):
            blocks.append([])
            used = 0
        blocks[-1].append(index)
        used += widths[index] + 2
    rendered = []
    for block in blocks:
        columns = [*range(num_labels), *block]
        rendered.append("\n".join("  ".join(line[i].ljust(widths[i]) for i in columns).rstrip() for line in lines))
    return "\n\n".join(rendered)


def _wrapped(line: Sequence[str]) -> list[list[str]]:
    cells = [wrap_text(cell, CELL_WIDTH) for cell in line]
    return [[cell[i] if i < len(cell) else "" for cell in cells] for i in range(max(map(len, cells)))]


def wrap_text(text: str, width: int = TEXT_WIDTH) -> list[str]:
    """Lines of whole words; at least one."""
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def markdown_table(lines: Sequence[Sequence[str]], num_labels: int) -> str:
    """A pipe table; numbers right-aligned."""
    rule = ["---" if index < num_labels else "---:" for index in range(len(lines[0]))]
    body = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in [body[0], rule, *body[1:]])


def csv_table(lines: Sequence[Sequence[str]]) -> str:
    """Comma-separated, quoted where needed."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()
