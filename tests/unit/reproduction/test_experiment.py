"""Experiments: their descriptions, their rows and the folders of their seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sm_diffusion.reproduction import experiment as experiments
from sm_diffusion.types import UserError
from tests.helpers.experiments import make_experiment


def test_experiment_is_read_in_its_own_order(tmp_path: Path) -> None:
    described = {"title": "T", "rows": ["soft"], "notes": "one\ntwo", "compare": [["soft", "binary"]]}
    folder = make_experiment(tmp_path, described)
    experiment = experiments.load_experiment("toy", folder)
    assert experiment.rows == ("soft", "binary", "pretrain")
    assert experiment.notes == ("one", "two")
    assert experiment.compare == (("soft", "binary"),)
    assert experiments.list_experiments(folder) == ["toy"]


@pytest.mark.parametrize(
    ("description", "words"),
    [
        ({"rows": ["gone"]}, "gone: no such file; the rows are binary, pretrain, soft"),
        ({"titel": "x"}, "titel: the keys are title, rows"),
        ({"rows": 3}, "rows: give a list of strings"),
        ({"compare": [["soft", "gone"]]}, "compare: ['soft', 'gone']: give pairs of rows"),
    ],
)
def test_wrong_description_names_the_key(tmp_path: Path, description: dict[str, Any], words: str) -> None:
    folder = make_experiment(tmp_path, description)
    with pytest.raises(UserError, match=r"experiment\.yaml") as error:
        experiments.load_experiment("toy", folder)
    assert words in str(error.value)


def test_unknown_experiment_lists_the_known(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tow: no such experiment; choose one of: toy"):
        experiments.load_experiment("tow", make_experiment(tmp_path))
    with pytest.raises(UserError, match="holds none"):
        experiments.load_experiment("toy", tmp_path / "nowhere")


def test_row_may_not_look_like_a_seed(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path)
    (folder / "toy" / "soft-seed2.yaml").write_text("")
    with pytest.raises(UserError, match="may not end in -seed"):
        experiments.load_experiment("toy", folder)


def test_seed_folders_are_those_of_the_row_only(tmp_path: Path) -> None:
    for name in ("soft", "soft-seed10", "soft-seed2", "soft_long", "soft_long-seed3", "soft-seedx"):
        (tmp_path / "toy" / name).mkdir(parents=True)
    names = [path.name for path in experiments.seed_folders("toy", "soft", runs=tmp_path)]
    assert names == ["soft", "soft-seed2", "soft-seed10"]
