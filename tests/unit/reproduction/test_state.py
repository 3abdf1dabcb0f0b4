"""Whether a run folder is done, interrupted, changed or stale."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from sm_diffusion.files import write_json
from sm_diffusion.reproduction import state
from sm_diffusion.training.run_folder import RunFolder
from tests.helpers.experiments import make_run, row_config


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
    RunFolder(folder).stale_mark.touch()
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
