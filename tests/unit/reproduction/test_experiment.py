"""Experiments, the state of run folders, tables; and the fake runs that the other tool tests use."""

from __future__ import annotations

import copy
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

CONFIG: dict[str, Any] = {
    "name": "toy/pretrain",
    "output_dir": "runs/toy/pretrain",
    "seed": 1,
    "init_from": None,
    "ckpt_path": None,
    "overwrite": False,
    "model": {"name": "dit_tiny", "width": 32},
    "variant": {"name": "mdlm"},
    "soft_mask": {"omega_s": 0.27, "omega_a": 3.05, "omega_b": -0.75},
    "data": {"length": 64, "cache_dir": "cache", "tokenizer": {"kind": "char"}},
    "trainer": {"max_steps": 100, "threads": None},
}


def make_experiment(folder: Path, description: dict[str, Any] | None = None) -> Path:
    """experiments/toy with three rows below `folder`; returns `folder`."""
    rows = folder / "toy"
    rows.mkdir(parents=True)
    for name in ("pretrain", "binary", "soft"):
        (rows / f"{name}.yaml").write_text(f"# @package _global_\n# The {name} row.\nname: toy/{name}\n")
    described = {"title": "Toy", "rows": ["pretrain", "binary", "soft"]} if description is None else description
    (rows / "experiment.yaml").write_text(yaml.safe_dump(described))
    return folder


def row_config(row: str, seed: int = 1, **changes: Any) -> dict[str, Any]:
    """The configuration a row of the toy experiment composes to."""
    config = copy.deepcopy(CONFIG)
    suffix = "" if seed == 1 else f"-seed{seed}"
    config |= {"name": f"toy/{row}{suffix}", "output_dir": f"runs/toy/{row}{suffix}", "seed": seed}
    if row != "pretrain":
        config["init_from"] = f"runs/toy/pretrain{suffix}/checkpoints/last.ckpt"
    if row == "soft":
        config["variant"] = {"name": "soft_masked", "p_sm": 0.8}
    return config | changes


def make_run(runs: Path, row: str, *, seed: int = 1, ppl: float = 12.0, **results: Any) -> Path:
    """A finished run folder; further keywords replace entries of results.json."""
    folder = experiments.run_folder("toy", row, seed=None if seed == 1 else seed, runs=runs)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"weights")
    config = row_config(row, seed)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    nll = math.log(ppl)
    metrics = {"val/ppl": ppl, "val/nll": nll, "val/bits_per_token": nll / math.log(2), "val/bits_per_byte": 2.4}
    soft = row == "soft"
    content = {
        "name": config["name"],
        "metrics": metrics | ({"val/ppl_without_feedback": ppl + 1} if soft else {}),
        "compute": {"steps": 100, "forward_passes": 180, "flops": 2.5e12, "tokens_per_second": 18345.6},
        "omegas": {"omega_s": 0.6, "omega_a": 1.12, "omega_b": -1.96} if soft else None,
        "config": config,
        "git_commit": "0123456789abcdef",
        "seed": seed,
    }
    write_json(folder / "results.json", content | results)
    return folder


def make_metrics(run_dir: Path, version: int, lines: list[str]) -> None:
    """One metrics.csv of the CSV logger: a header and lines."""
    folder = run_dir / "metrics" / f"version_{version}"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


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
