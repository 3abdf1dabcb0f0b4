"""`smd` itself, `smd config`, and the checker of links."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from sm_diffusion import __version__, paths
from sm_diffusion.app.compose import composed
from sm_diffusion.cli import main as cli
from sm_diffusion.reproduction import shipped
from sm_diffusion.types import UserError
from tests.helpers import links
from tests.helpers.experiments import make_experiment

MOST_MODULES = 30  # of this package, imported for help

# -------------------------------------------------------------------------------------------------------------- smd


@pytest.mark.parametrize("name", sorted(cli.available()))
def test_help_of_every_command_shows_examples(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([name, "--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"usage: smd {name}" in out
    assert "examples:\n  smd " in out
    examples = out.partition("examples:\n")[2].splitlines()
    assert all(f"smd {name}" in line for line in examples)


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in ((["--help"], "run      train and evaluate"), (["--version"], f"smd {__version__}")):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 0
        assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [["--help"], *([name, "--help"] for name in sorted(cli.available()) if name != "bench")], ids=" ".join
)
def test_help_imports_little(arguments: list[str]) -> None:
    """Heavy packages are imported by the work, not by the help; so are most of our own modules."""
    code = (
        "import sys\nfrom sm_diffusion.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as stop:\n    assert not stop.code\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    modules = set(done.stderr.split())
    heavy = {"torch", "numpy", "datasets", "transformers", "lightning", "hydra", "omegaconf", "matplotlib", "optuna"}
    assert heavy & modules == set()
    ours = [name for name in modules if name.partition(".")[0] == "sm_diffusion"]
    assert len(ours) <= MOST_MODULES, sorted(ours)


def test_unknown_or_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["rnu"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: rnu: no such command; choose one of: config, prepare, plan,")
    assert cli.main([]) == 2


def test_only_modules_that_are_there_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.COMMANDS, "later", "sm_diffusion.cli.not_written_yet")
    assert "later" not in cli.available()


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [(UserError("key=1: wrong"), 2, "error: key=1: wrong\n"), (KeyboardInterrupt(), 130, "interrupted\n")],
)
def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, status: int, text: str
) -> None:
    def fail(_: object) -> int:
        raise error

    module = ModuleType("fake")
    vars(module).update(HELP="h", EXAMPLES="smd fake", add_arguments=lambda parser: None, run=fail)
    monkeypatch.setitem(sys.modules, "tests.helpers.links", module)
    monkeypatch.setitem(cli.COMMANDS, "fake", "tests.helpers.links")
    monkeypatch.setattr(cli, "available", lambda: {"fake": "tests.helpers.links"})
    assert cli.main(["fake"]) == status
    assert capsys.readouterr().err == text


# ----------------------------------------------------------------------------------------------------------- config


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


# ------------------------------------------------------------------------------------------------------------ links


def test_links_of_the_repository() -> None:
    assert links.check(paths.ROOT) == []


def test_broken_references_are_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "conf").mkdir()
    (tmp_path / "train.py").write_text("")
    (tmp_path / "docs" / "page.md").write_text("# One `two`\n\n# One two\n\n[up](../README.md#first--second)\n")
    (tmp_path / "README.md").write_text(
        "# First & second\n"
        "[good](docs/page.md#one-two-1) [web](https://example.org/x.md) ![gone](docs/plot.png)\n"
        "[heading](docs/page.md#three) [self](#first--second)\n"
        "`train.py` `conf/model/tiny.yaml` `runs/x/results.json` `conf/*.yaml`\n"
        "`eval.py` `data/x` `python train.py a=b`\n"
        "```\n[not](a-link.md) `conf/no.yaml`\n# no heading\n```\n"
        "`[not](a-link.md)`\n"
    )
    assert links.check(tmp_path) == [
        "README.md: link to docs/plot.png: no such file",
        "README.md: link to docs/page.md#three: no such heading",
        "README.md: `conf/model/tiny.yaml`: no such file",
        "README.md: `eval.py`: no such file",
    ]
    assert links.main([str(tmp_path)]) == 1
