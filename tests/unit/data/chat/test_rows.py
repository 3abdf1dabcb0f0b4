"""Which samples share a row."""

from __future__ import annotations

from sm_diffusion.data.chat.rows import first_fit


def test_first_fit_fills_rows() -> None:
    lengths = [8, 96, 40, 16, 56, 24]
    rows = first_fit(lengths, 96)
    assert sorted(number for row in rows for number in row) == list(range(6))
    assert [sum(lengths[number] for number in row) for row in rows] == [96, 96, 48]
