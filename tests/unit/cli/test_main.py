"""`smd` itself: help, versions, errors in one line."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from sm_diffusion import __version__
from sm_diffusion.cli import main as cli
from sm_diffusion.types import UserError

MOST_MODULES = 30  # of this package, imported for help

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
