"""The experiments that ship: what each folder holds, and that its rows are what they claim."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sm_diffusion.app.compose import composed
from sm_diffusion.config.compose import compose_config
from sm_diffusion.planning.plan import make_plan
from sm_diffusion.reproduction.experiment import Experiment, list_experiments, load_experiment
from sm_diffusion.reproduction.rows import compose_row, plan_runs
from sm_diffusion.reproduction.shipped import consent_to_run_code

ALL = [load_experiment(name) for name in list_experiments()]
PUBLISHED = [e for e in ALL if not e.name.startswith("mini_") and e.name != "quickstart"]
# One of each kind; the others are composed with -m slow.
FEW = (
    *("owt_continuation/start", "owt_generation/sm_updates_remdm_T1024", "owt_zero_shot/sm_updates"),
    *("mini_owt_scratch/sm_compute", "mini_owt_generation/sm_updates_remdm_T8", "mini_owt_zero_shot/binary"),
    *("mini_ablation_top_k/full", "mini_mixing/linear", "mini_code_dream/sm", "mini_ablation_switch/decode_early"),
)


def program_of(name: str) -> str:
    experiment, row = name.split("/")
    return "eval" if row in load_experiment(experiment).eval_rows else "train"


@pytest.mark.parametrize("name", FEW)
def test_rows_compose_into_their_own_folder(name: str) -> None:
    program = program_of(name)
    consent = consent_to_run_code(Path(*name.split("/"))) if program == "eval" else []
    config = composed(program, [f"experiments={name}", *consent], checkpoint_exists=False)
    assert config["output_dir"] == f"runs/{name}"


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ALL, ids=lambda experiment: experiment.name)
def test_every_row_is_planned_for_any_seed(experiment: Experiment, tmp_path: Path) -> None:
    def compose(program: str, overrides: Any) -> Any:
        experiment_row = overrides[0].removeprefix("experiments=")
        consent = consent_to_run_code(Path(*experiment_row.split("/"))) if program == "eval" else []
        return compose_row(program, [*overrides, *consent])

    planned = plan_runs(experiment, seeds=[11], runs=tmp_path / "x y", compose=compose)
    own = [item for item in planned if item.experiment == experiment.name]
    assert sorted(item.row for item in own) == sorted(experiment.rows)
    for item in own:
        config = compose(item.program.name, item.overrides)
        assert Path(config["output_dir"]) == item.folder == tmp_path / "x y" / experiment.name / f"{item.row}-seed11"
        assert config["seed"] == 11
        if item.needs is not None:
            assert Path(config[item.program.start]).is_relative_to(item.needs)


@pytest.mark.parametrize("experiment", PUBLISHED, ids=lambda experiment: experiment.name)
def test_published_experiments_have_a_twin(experiment: Experiment) -> None:
    twin = "code_dream" if experiment.name == "code_dream_coder" else experiment.name
    assert f"mini_{twin}" in list_experiments()


def train(name: str) -> Any:
    return compose_config("train", [f"experiments={name}"])


def test_continuation_rows_differ_in_what_they_claim() -> None:
    binary, soft = train("owt_continuation/binary"), train("owt_continuation/sm_updates")
    same = {"name", "output_dir", "variant"}
    differing = {f.name for f in dataclasses.fields(binary) if getattr(binary, f.name) != getattr(soft, f.name)}
    assert differing == same
    assert (soft.variant.p_sm, soft.soft_mask.top_k, soft.soft_mask.omega_s, soft.optim.lr) == (0.8, 3, 0.0, 3e-4)
    assert (soft.trainer.max_steps, soft.data.global_batch_sequences, soft.data.length) == (100_000, 512, 1024)


@pytest.mark.parametrize(
    ("soft", "binary"),
    [
        ("ablation_iso_compute/sm_flops", "owt_continuation/binary"),
        ("mini_ablation_iso_compute/sm_flops", "mini_ablation_top_k/binary"),
        ("mini_owt_continuation/code_sm_compute", "mini_owt_continuation/code_binary"),
        ("mini_owt_continuation/english_sm_compute", "mini_owt_continuation/english_binary"),
    ],
)
def test_equal_flops_are_equal(soft: str, binary: str) -> None:
    """To less than a quarter of a step of the baseline."""
    steps = train(binary).trainer.max_steps
    flops = make_plan(train(binary), vocab=None, on_gpu=False, num_devices=1).total_flops
    assert train(soft).trainer.max_flops == pytest.approx(flops, rel=1 / (4 * steps))


def test_dream_settings_are_the_published_ones() -> None:
    soft, mathematics = train("code_dream/sm"), train("math_dream/sm")
    assert (soft.soft_mask.top_k, mathematics.soft_mask.top_k, soft.variant.p_sm) == (1, 3, 0.5)
    assert (soft.optim.lr, soft.optim.omega_lr, soft.optim.clip_norm) == (1e-5, 1e-2, 7.0)
    assert soft.trainer.max_steps == 33500
    assert (soft.peft.kind, soft.peft.rank, soft.objective.t_min, soft.objective.t_max) == ("dora", 16, 0.2, 0.8)
    assert load_experiment("code_dream").seeds == (1231, 1232, 1233, 1234, 1235)
