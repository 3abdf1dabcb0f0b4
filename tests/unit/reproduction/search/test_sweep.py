"""W&B sweep files: what a Hydra search space becomes, and what is refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from sm_diffusion.app import compose
from sm_diffusion.cli import main as cli
from sm_diffusion.config.search_space import parse_search
from sm_diffusion.reproduction.search import sweep
from sm_diffusion.types import UserError

ROW = "experiments=quickstart/sm_updates"


@pytest.mark.parametrize(
    ("word", "spec", "probes"),
    [
        ("soft_mask.top_k=choice(1,3,5)", {"values": [1, 3, 5]}, ("1", "3", "5")),
        ("seed=1,2", {"values": [1, 2]}, ("1", "2")),
        ("seed=range(1,4)", {"values": [1, 2, 3]}, ("1", "2", "3")),
        ("soft_mask=choice(warm,published)", {"values": ["warm", "published"]}, ("warm", "published")),
        ("data.paths=choice([a],[b])", {"values": ["[a]", "[b]"]}, ("[a]", "[b]")),
        ("x.y=choice(true,false)", {"values": ["True", "False"]}, ("True", "False")),
    ],
)
def test_choices(word: str, spec: dict[str, Any], probes: tuple[str, ...]) -> None:
    (found,) = parse_search([word]).parameters
    assert (found.key, found.spec, found.probes) == (word.partition("=")[0], spec, probes)


@pytest.mark.parametrize(
    ("value", "spec"),
    [
        ("interval(0.5,1.0)", {"distribution": "uniform", "min": 0.5, "max": 1.0}),
        ("interval(1,5)", {"distribution": "uniform", "min": 1.0, "max": 5.0}),
        ("int(interval(1,5))", {"distribution": "int_uniform", "min": 1, "max": 5}),
        ("tag(log,interval(1e-4,1e-2))", {"distribution": "log_uniform_values", "min": 1e-4, "max": 1e-2}),
        ("tag(log,int(interval(1,64)))", {"distribution": "q_log_uniform_values", "q": 1, "min": 1, "max": 64}),
    ],
)
def test_intervals(value: str, spec: dict[str, Any]) -> None:
    (found,) = parse_search([f"optim.lr={value}"]).parameters
    assert found.spec == spec
    low, inside, high = map(float, found.probes)
    assert low < inside < high
    assert (low, high) == (spec["min"], spec["max"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lr=interval(1,0)"], "an empty interval; write"),
        (["optim.lr=tag(log,interval(0,1))"], "must begin above 0"),
        (["optim.lr=tag(lin,interval(0,1))"], "tag lin: the only tag"),
        (["seed=range(3,1)"], "an empty range"),
        (["model=glob(*)"], "glob is not known"),
        (["optim.lr=choice(1,"], r"optim\.lr=choice\(1,: "),
        (["seed=1,2", "seed=3,4"], "seed is searched twice"),
    ],
)
def test_what_cannot_be_searched_is_one_line(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as found:
        parse_search(words)
    assert "\n" not in str(found.value)


def test_few_combinations_are_all_checked_and_many_one_by_one() -> None:
    few = list(parse_search(["a=1", "b=1,2", "c=3,4"]).to_check())
    assert few == [["a=1", "b=1", "c=3"], ["a=1", "b=1", "c=4"], ["a=1", "b=2", "c=3"], ["a=1", "b=2", "c=4"]]
    many = list(parse_search(["b=range(0,9)", "c=3,4"]).to_check())
    assert len(many) == 10
    assert {word for words in many for word in words} == {*(f"b={index}" for index in range(9)), "c=3", "c=4"}


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every configuration is valid but those with lr=2; what was asked is listed."""
    asked: list[list[str]] = []

    def composed(program: str, overrides: list[str]) -> dict[str, Any]:
        asked.append(overrides)
        if "optim.lr=2.0" in overrides:
            raise UserError("optim.lr=2.0: too large")
        return {"logger": {"project": "sm_diffusion", "entity": None}}

    monkeypatch.setattr(compose, "composed", composed)
    return asked


def test_file_and_what_an_agent_makes_of_it(
    tmp_path: Path, refused: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "lr.yaml"
    words = [ROW, "optim.lr=tag(log,interval(1e-4,1e-2))", "soft_mask=choice(warm,published)"]
    assert cli.main(["sweep", *words, "--method", "random", "--run-cap", "9", "-o", str(out)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{out}\n"
    assert f"wandb sweep --project sm_diffusion {out}" in printed.err
    content = yaml.safe_load(out.read_text())
    assert content["program"] == "train.py"
    assert content["method"] == "random"
    assert content["run_cap"] == 9
    assert content["metric"] == {"name": "val/ppl", "goal": "minimize"}
    assert refused
    # As W&B's agent does.
    args = create_sweep_command_args({"args": {"optim.lr": {"value": 0.001}, "soft_mask": {"value": "warm"}}})
    command: list[str] = []
    for part in create_sweep_command(content["command"]):
        command += args.get(part[2:-1], [part]) if part.startswith("${") and part.endswith("}") else [part]
    assert command[3:] == [
        ROW,
        "logger=wandb",
        "name=sweeps/lr/${oc.env:WANDB_RUN_ID}",
        "optim.lr=0.001",
        "soft_mask=warm",
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["optim.lr=interval(1.0,2.0)"], "error: optim.lr=2.0: too large"),
        (
            ["optim.lr=interval(0,1)", "--method", "grid"],
            "grid tries every value, and optim.lr is an interval",
        ),
        (["optim.lr=1"], "nothing to search: give at least one key=choice"),
        (["name=choice(a,b)"], "name=choice(a,b): set for each run of the sweep; leave it out"),
        (["seed=1,2", "--run-cap", "0"], "--run-cap 0: must be >= 1"),
    ],
)
def test_a_bad_search_writes_nothing(
    tmp_path: Path,
    refused: list[list[str]],
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    out = tmp_path / "sweep.yaml"
    assert cli.main(["sweep", *words, "-o", str(out)]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_names_and_types_are_checked_against_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"soft_mask\.topk=1: Could not override 'soft_mask\.topk'"):
        sweep.check(parse_search(["soft_mask.topk=1,2"]))
    with pytest.raises(UserError, match=r"for whole numbers write int\(interval\(a,b\)\)"):
        sweep.check(parse_search(["soft_mask.top_k=interval(1,5)"]))
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    found = compose.composed("train", ["name=sweeps/x/${oc.env:WANDB_RUN_ID}", "logger=wandb_offline"])
    assert found["output_dir"] == "runs/sweeps/x/abc123"
    assert found["logger"]["wandb"] == "offline"
