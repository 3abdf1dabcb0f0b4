"""results.json: written whole or not at all, read back with every number; the code version it names."""

from __future__ import annotations

import json
import math
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sm_diffusion.evaluation import results
from sm_diffusion.evaluation.results import read_results
from sm_diffusion.files import write_json
from sm_diffusion.types import UserError


def test_round_trip_keeps_nan_and_infinity_and_is_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "new" / "results.json"
    metrics = {"val/ppl": math.nan, "val/nll": math.inf, "low": -math.inf, "x": np.float32(0.5), "n": np.int64(3)}
    write_json(path, {"metrics": metrics, "omegas": None, "config": {"path": Path("a/b"), "betas": (0.9, 0.999)}})
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    found = read_results(path)
    assert math.isnan(found["metrics"]["val/ppl"])
    assert found["metrics"]["val/nll"] == math.inf
    assert found["metrics"]["low"] == -math.inf
    assert (found["metrics"]["x"], found["metrics"]["n"]) == (0.5, 3)
    assert found["config"] == {"path": "a/b", "betas": [0.9, 0.999]}
    assert [entry.name for entry in path.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not JSON"), ("[]", "not a results file"), ('{"metrics": 3}', "not a results file")],
)
def test_broken_results_name_the_file(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(UserError, match=words) as error:
        read_results(path)
    assert str(path) in str(error.value)


def test_environment_is_json_and_names_no_host(tmp_path: Path) -> None:
    found = results.environment()
    write_json(tmp_path / "environment.json", found)
    assert set(found) == {"git_commit", "git_dirty", "python", "versions", "machine"}
    assert "torch" in found["versions"]
    assert found["machine"]["cores"] >= 1


def test_git_state(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    assert results.git_state(tmp_path) == (None, None)
    git("init", "-q")
    (tmp_path / "train.py").write_text("1\n")
    git("add", "train.py")
    git("commit", "-qm", "one", "--no-verify")
    commit, dirty = results.git_state(tmp_path)
    assert commit is not None
    assert len(commit) == 40
    assert dirty is False
    (tmp_path / "notes.txt").write_text("not a source")
    assert results.git_state(tmp_path)[1] is False
    (tmp_path / "train.py").write_text("2\n")
    assert results.git_state(tmp_path)[1] is True
    (tmp_path / "conf").mkdir()
    assert results.git_state(tmp_path / "conf") == (None, None)
