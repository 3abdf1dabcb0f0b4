"""docs/dream.md: every deliberate difference from the reference names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/dream.md").read_text()
SECTION = TEXT.split("## Behaviours of the reference code, and ours")[1].split("\n## ")[0]
FILES = dict(re.findall(r"\b([A-Z]) = `(tests/[\w/]+\.py)`", SECTION))
ROWS = [line for line in SECTION.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("row", ROWS, ids=range(len(ROWS)))
def test_every_row_names_tests_that_exist(row: str) -> None:
    named = re.findall(r"\b([A-Z])::(test_\w+)", row.split(" | ")[-1])
    assert named, row
    for letter, name in named:
        tree = ast.parse((ROOT / FILES[letter]).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (letter, name)


def test_the_table_is_read() -> None:
    assert len(ROWS) >= 20
    assert len(FILES) >= 8
