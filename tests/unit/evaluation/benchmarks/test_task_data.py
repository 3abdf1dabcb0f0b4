"""Benchmark rows: real files where they are, made-up rows in every published layout, and bad input in one line."""

from __future__ import annotations

import sys

import pytest

from sm_diffusion.evaluation.benchmarks.task_data import load_rows, local_file, source_of
from sm_diffusion.evaluation.benchmarks.tasks import build_task
from sm_diffusion.registry import names
from sm_diffusion.types import UserError
from tests.helpers.tasks import HUMANEVAL, MBPP, MBPP_PLUS_HUB, ROWS, real, write


@pytest.mark.parametrize(
    ("task", "name", "split", "count"),
    [
        ("humaneval", "HumanEval.jsonl.gz", "test", 164),
        ("mbpp", "mbpp.jsonl", "all", 974),
        ("mbpp", "mbpp.jsonl", "test", 500),
        ("mbpp", "mbpp.jsonl", "validation", 90),
        ("mbpp", "mbpp.jsonl", "few_shot", 3),
        ("mbpp_plus", "mbpp_plus_v1.jsonl", "test", 399),
        ("gsm8k", "gsm8k_test.jsonl", "test", 1319),
    ],
)
def test_real_files_load_whole(task, name, split, count):
    assert len(load_rows(task, real(name), split=split).rows) == count


@pytest.mark.parametrize("task", names("benchmark"))
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_every_layout_loads_and_builds(task, name, tmp_path):
    built = build_task(task, write(tmp_path, ROWS[task], name))
    (problem,) = built.problems
    assert built.prompt(problem).messages[0]["role"] == "user"
    assert len(built.data.sha256) == 64


@pytest.mark.parametrize(("task", "row"), [("humaneval_plus", HUMANEVAL), ("mbpp_plus", MBPP_PLUS_HUB)])
def test_hub_layout_of_the_plus_sets(task, row, tmp_path):
    (problem,) = build_task(task, write(tmp_path, [row])).problems
    assert list(problem.checks) == ["tests"]
    assert problem.checks["tests"].names == ("add",)


@pytest.mark.parametrize("task", names("benchmark"))
def test_missing_field_is_named(task, tmp_path):
    for field in source_of(task).layouts[0]:
        row = {key: value for key, value in ROWS[task][0].items() if key != field}
        path = write(tmp_path, [row])
        with pytest.raises(UserError, match=f"{path.name}: line 1: missing field .*; fields found: ") as info:
            load_rows(task, path)
        assert "\n" not in str(info.value)
        assert field in str(info.value) or task == "humaneval_plus"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no gsm8k rows"),
        ("{", "line 1: not JSON"),
        ("\n[1]\n", "line 2 is a list"),
        ('{"question": null, "answer": "#### 1"}', "missing field question"),
    ],
)
def test_bad_files(content, words, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=words):
        load_rows("gsm8k", path)


def test_other_mistakes(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="no task 'nope'; choose from gsm8k, humaneval, "):
        load_rows("nope")
    with pytest.raises(UserError, match="no split 'train'"):
        load_rows("gsm8k", tmp_path / "x", split="train")
    with pytest.raises(UserError, match="no such file"):
        load_rows("gsm8k", tmp_path / "absent.jsonl")
    with pytest.raises(UserError, match="unreadable"):
        (tmp_path / "plain.jsonl.gz").write_text("{}")
        load_rows("gsm8k", tmp_path / "plain.jsonl.gz")
    with pytest.raises(UserError, match="line 2: task_id 11 is on line 1 already"):
        load_rows("mbpp", write(tmp_path, [MBPP, MBPP]))
    with pytest.raises(UserError, match="no style 'chat_prefix'; choose from chat, completion"):
        build_task("gsm8k", tmp_path / "x", style="chat_prefix")
    monkeypatch.setenv("SMD_BENCH_DATA", str(tmp_path / "no-folder"))
    with pytest.raises(UserError, match="SMD_BENCH_DATA: no folder"):
        local_file("gsm8k")


def test_environment_folder_is_searched(tmp_path, monkeypatch):
    write(tmp_path, ROWS["gsm8k"], "gsm8k_test.jsonl")
    monkeypatch.setenv("SMD_BENCH_DATA", str(tmp_path))
    assert len(load_rows("gsm8k").rows) == 1
    assert local_file("humaneval") is None


def test_hub_is_asked_by_name(monkeypatch):
    """The hub's client is replaced: what it is asked for, what becomes of its rows, and what its failure says."""
    asked = []

    class Client:
        @staticmethod
        def load_dataset(name, configuration, split):
            asked.append((name, configuration, split))
            if name == "openai/gsm8k":
                raise ConnectionError("offline\nsecond line")
            return [MBPP]

    monkeypatch.delenv("SMD_BENCH_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "datasets", Client)
    rows = load_rows("mbpp")
    assert rows.origin == "hub:google-research-datasets/mbpp/full"
    assert len(rows.rows) == 1
    with pytest.raises(UserError, match=r"openai/gsm8k: could not be loaded from the hub \(offline\)") as info:
        load_rows("gsm8k")
    assert "\n" not in str(info.value)
    assert asked == [("google-research-datasets/mbpp", "full", "train+test+validation+prompt"),
                     ("openai/gsm8k", "main", "test")]  # fmt: skip
