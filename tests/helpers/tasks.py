"""Rows of benchmarks: made-up ones in every published layout, and the real files where they are."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest

DATA = Path(os.environ.get("SMD_BENCH_DATA") or Path(__file__).parents[3] / "shared" / "data")
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'def add(a, b):\n    """Add."""\n',
    "entry_point": "add",
    "canonical_solution": "    return a + b\n",
    "test": "def check(candidate):\n    assert candidate(1, 2) == 3\n",
}
EVALPLUS = {
    **{key: HUMANEVAL[key] for key in ("task_id", "prompt", "entry_point", "canonical_solution")},
    "base_input": [[1, 2]],
    "plus_input": [[3, 4]],
    "atol": 0,
}
MBPP = {
    "task_id": 11,
    "text": "Add two numbers.",
    "code": "def add(a, b):\r\n  return a + b",
    "test_list": ["assert add(1, 2) == 3"],
    "test_setup_code": "",
    "challenge_test_list": [],
}
MBPP_PLUS_HUB = {
    "task_id": 2,
    "prompt": "Add.",
    "code": "def add(a, b):\n  return a + b",
    "test_list": ["assert add(1, 2) == 3"],
    "test": "for a, b, c in [(1, 2, 3)]:\n    assert add(a, b) == c\n",
}
ROWS = {
    "humaneval": [HUMANEVAL],
    "humaneval_plus": [EVALPLUS],
    "mbpp": [MBPP],
    "mbpp_plus": [{**EVALPLUS, "assertion": "assert add(1, 2) == 3"}],
    "gsm8k": [{"question": "1 + 1?", "answer": "1 + 1 = 2\n#### 2"}],
    "math500": [{"problem": "1 + 1?", "answer": "2", "unique_id": "test/a/1.json", "solution": "", "level": 1}],
}


def real(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no {name} in {DATA}; set SMD_BENCH_DATA to a folder that holds it")
    return path


def write(folder: Path, rows, name: str = "rows.jsonl") -> Path:
    path = folder / name
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return path
