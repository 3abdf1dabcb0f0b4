"""A sweep is checked as a whole before its first job."""

from __future__ import annotations

import pytest

from sm_diffusion.config.launch import job_folder
from sm_diffusion.config.sweep import check_sweep, is_plain_sweep, jobs_of
from sm_diffusion.types import UserError


def test_jobs_are_those_of_hydra() -> None:
    assert jobs_of(["-m", "seed=1,2", "name=x", "optim.lr=choice(0.1,0.2)"]) == [
        ["seed=1", "name=x", "optim.lr=0.1"],
        ["seed=1", "name=x", "optim.lr=0.2"],
        ["seed=2", "name=x", "optim.lr=0.1"],
        ["seed=2", "name=x", "optim.lr=0.2"],
    ]
    assert ["optim=small"] in jobs_of(["-m", "optim=glob(*)"])


def test_a_glob_that_finds_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"experiments=glob\(quickstart/\*\): matches nothing"):
        jobs_of(["-m", "experiments=glob(quickstart/*)"])


@pytest.mark.parametrize("bad", ["trainer.max_steps=3,x", "optim=small,nope", "+optim.lrr=1,2"])
def test_a_bad_value_anywhere_stops_the_sweep_before_its_first_job(bad: str) -> None:
    with pytest.raises(UserError, match=r"of the sweep's 2 jobs would be refused, so none is started:\n  job \d"):
        check_sweep("train", ["-m", bad], None)


def test_the_check_sees_every_job() -> None:
    seen = []
    check_sweep("train", ["-m", "seed=1,2,3"], lambda config: seen.append(config.seed))
    assert seen == [1, 2, 3]

    def refuse(config: object) -> None:
        raise UserError("no")

    with pytest.raises(UserError, match="3 of the sweep's 3 jobs"):
        check_sweep("train", ["-m", "seed=1,2,3"], refuse)


@pytest.mark.parametrize(
    ("words", "plain"),
    [
        (["-m", "seed=1,2"], True),
        (["seed=1,2", "--multirun"], True),
        (["seed=1"], False),
        (["-m", "seed=1,2", "hydra/sweeper=optuna"], False),
        (["-m", "seed=1,2", "--cfg", "job"], False),
    ],
)
def test_which_command_lines_are_checked(words: list[str], plain: bool) -> None:
    assert is_plain_sweep(words) is plain


def test_folders_of_jobs_can_be_given_back_to_hydra() -> None:
    folder = job_folder("runs/x", 3, ["optim.lr=0.1", "seed=2", "data.paths=[a,b]"])
    assert folder == "runs/x/003-optim.lr_0.1-seed_2-data.paths_a_b"
    assert job_folder("runs/x", 0, []) == "runs/x/000"
