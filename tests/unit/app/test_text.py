"""Numbers and tables as text."""

from __future__ import annotations

import math

import pytest

from sm_diffusion.app import text as tables


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (17.2834, 4, "17.28"),
        (0.0123456, 4, "0.01235"),
        (123456.0, 4, "123456"),
        (0.0, 4, "0.000"),
        (math.nan, 4, "NaN"),
        (math.inf, 0, "inf"),
        (180.0, 0, "180"),
        (18345.6, 0, "18.3k"),
        (2.5e12, 0, "2.5T"),
        (999_900.0, 0, "1M"),
    ],
)
def test_number(value: float, digits: int, text: str) -> None:
    assert tables.number(value, digits) == text


def test_text_table_wraps_into_blocks() -> None:
    lines = [["row", "n", *(f"column {index:02d}" for index in range(20))], ["x" * 20, "1", *(["1.0"] * 20)]]
    text = tables.text_table(lines, 2)
    assert max(map(len, text.splitlines())) <= 110
    blocks = text.split("\n\n")
    assert len(blocks) > 1
    assert all(block.startswith("row ") for block in blocks)
    assert sum(block.count("column") for block in blocks) == 20


def test_markdown_and_csv_escape() -> None:
    lines = [["row", "n"], ["a|b", "1, 2"]]
    assert "a\\|b" in tables.markdown_table(lines, 1)
    assert tables.csv_table(lines) == 'row,n\na|b,"1, 2"\n'
