"""Experiments: their descriptions, their rows and the folders of their seeds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from sm_diffusion.app import text as tables
from sm_diffusion.files import write_json
from sm_diffusion.reproduction import experiment as experiments
from sm_diffusion.reproduction import state
from sm_diffusion.types import UserError
from tests.helpers.experiments import make_experiment, make_run, row_config

# ------------------------------------------------------------------------------------------------------ experiments


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


# ------------------------------------------------------------------------------------------------------------ state


def test_state_of_run_folders(tmp_path: Path) -> None:
    config = row_config("pretrain")
    folder = tmp_path / "toy" / "pretrain"
    assert state.state_of(folder, config) == (state.State.MISSING, [])
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert state.state_of(folder, config) == (state.State.RESTART, [])
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    assert state.state_of(folder, config) == (state.State.INTERRUPTED, [])
    write_json(folder / "results.json", {"metrics": {}, "config": config})
    assert state.state_of(folder, config) == (state.State.DONE, [])
    (folder / state.STALE_MARK).touch()
    assert state.state_of(folder, config) == (state.State.STALE, [])


def test_another_configuration_is_told_and_harmless_settings_are_not(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "pretrain")
    harmless = row_config("pretrain", output_dir="elsewhere", overwrite=True, logger={"wandb": "offline"})
    harmless["trainer"] = {"max_steps": 100, "threads": 1}
    assert state.state_of(folder, harmless)[0] is state.State.DONE
    other = row_config("pretrain", trainer={"max_steps": 200, "threads": None})
    assert state.state_of(folder, other) == (state.State.CHANGED, ["trainer.max_steps: 100 -> 200"])


def test_settings_that_an_earlier_version_did_not_know_count_only_off_their_default(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "soft")
    variant = {"name": "soft_masked", "p_sm": 0.8, "start_step": 0, "stop_step": None}
    assert state.state_of(folder, row_config("soft", variant=variant))[0] is state.State.DONE
    changed = row_config("soft", variant=variant | {"start_step": 7})
    assert state.state_of(folder, changed) == (state.State.CHANGED, ["variant.start_step: absent -> 7"])
    assert state.schema_defaults()["callbacks.checkpoint.verify"] == [True]
    assert state.schema_defaults()["sampler.eta"] == [0.04, 0.015, 0.02]


def test_state_survives_yaml_and_json_round_trips(tmp_path: Path) -> None:
    config = row_config("pretrain", optim={"lr": 1e-5, "betas": (0.9, 0.999), "eps": 1e-8}, max_flops=1e15)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    assert state.state_of(folder, config)[0] is state.State.RESTART
    write_json(folder / "results.json", {"metrics": {}, "config": config})
    assert state.state_of(folder, config)[0] is state.State.DONE


# ----------------------------------------------------------------------------------------------------------- tables


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
