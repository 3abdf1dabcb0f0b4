"""`smd config`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sm_diffusion.app.compose import composed
from sm_diffusion.cli import main as cli
from sm_diffusion.reproduction import shipped
from tests.helpers.experiments import make_experiment


def test_config_prints_resolved_yaml(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "train", "model=dit_tiny", "name=mine", "seed=3"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["output_dir"] == "runs/mine"
    assert config["seed"] == 3
    assert config["optim"]["lr"] == 3e-4


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["model.widht=3"], "widht"),
        (["seed=x"], "seed"),
        (["model=dit_2b"], "dit_2b"),
        (["modle"], "modle: neither a program (train, eval) nor an override"),
        (["data=text_files"], "data.paths: not set"),
    ],
)
def test_config_refuses_in_one_line(words: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", *words]) == 2
    error = capsys.readouterr().err
    assert text in error
    assert error.count("\n") == 1


def test_config_does_not_ask_for_files_of_runs_to_come() -> None:
    config = composed("train", ["init_from=runs/not/yet.ckpt", "trainer.accelerator=cuda"])
    assert config["init_from"] == "runs/not/yet.ckpt"
    assert config["trainer"]["accelerator"] == "cuda"


def test_groups_lists_options_defaults_and_rows(tmp_path: Path) -> None:
    make_experiment(tmp_path / "experiments")
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "train.yaml").write_text("defaults:\n  - model: small\n  - override hydra/x: y\n  - _self_\n")
    for name in ("small", "large"):
        (tmp_path / "conf" / "model" / f"{name}.yaml").write_text(f"# @package _global_\n# A {name} one.\nwidth: 3\n")
    text = shipped.groups_text(tmp_path)
    assert "\n    large              A large one.\n  * small              A small one." in text
    assert "experiments=toy/...   Toy" in text
    assert "soft               The soft row." in text
    assert list(shipped.shipped(tmp_path)) == [
        ["model=large"],
        ["model=small"],
        *([f"experiments=toy/{row}"] for row in ("pretrain", "binary", "soft")),
    ]


def test_groups_of_the_repository(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "--groups"]) == 0
    out = capsys.readouterr().out
    for words in ("dit_169m", "soft_masked", "log_linear"):
        assert words in out


def test_check_all_counts_failures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    options = [["model=dit_tiny"], ["model=dit_tiny", "model.num_heads=5"], ["data=text_files"]]
    monkeypatch.setattr(shipped, "shipped", lambda root: iter(options))
    monkeypatch.setattr(shipped, "shipped_evaluations", lambda root: iter([["checkpoint=of-a-row"]]))
    assert cli.main(["config", "--check-all"]) == 1
    out = capsys.readouterr().out
    assert "ok      model=dit_tiny\n" in out
    assert "FAILED  model=dit_tiny model.num_heads=5: model.width=96" in out
    assert "ok      checkpoint=of-a-row\n" in out
    assert "3 of 4 configurations are valid" in out
