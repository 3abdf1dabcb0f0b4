"""A user's mistake is one line that names key, value and remedy; several mistakes are reported at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sm_diffusion.app.validate import validate_train
from sm_diffusion.config.compose import compose_config
from sm_diffusion.paths import ROOT
from sm_diffusion.types import UserError
from tests.helpers.runs import overrides, run


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("trainer.max_stepz=3", r"trainer\.max_stepz.*not in 'TrainerSettings'.*smd config"),
        ("+trainer.max_stepz=3", r"trainer\.max_stepz: unknown key"),
        ("+nonsense=1", r"nonsense: unknown key"),
        ("trainer.max_steps=abc", r"trainer\.max_steps.*'abc'.*Integer"),
        ("soft_mask.omega_s=[1]", r"soft_mask\.omega_s.*Float"),
        ("model=dit_9000", r"model/dit_9000.*dit_169m"),
        ("experiments=quickstart/nope", r"experiments/quickstart/nope"),
        ("data=text_files", r"data\.paths: not set"),
        ("model", r"write key=value"),
    ],
)
def test_composition_errors_are_one_line(override: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        compose_config("train", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("soft_mask.omega_s=1.5", r"soft_mask\.omega_s=1\.5: must lie in \[0, 1\]"),
        ("soft_mask.omega_s=-0.1", r"soft_mask\.omega_s=-0\.1: must lie in \[0, 1\]"),
        ("soft_mask.omega_b=0.5", r"soft_mask\.omega_b=0\.5: must be <= 0"),
        ("soft_mask.omega_a=-1", r"soft_mask\.omega_a=-1\.0: must be >= 0"),
        ("soft_mask.top_k=0", r"soft_mask\.top_k=0: must be >= 1"),
        ("soft_mask.mixing=cubic", r"soft_mask\.mixing=cubic: unknown; choose one of linear, "),
        ("variant.p_sm=1.2", r"variant\.p_sm=1\.2: must lie in \[0, 1\]"),
        ("model.width=17", r"model\.width=17: must be a multiple of .* set model\.width=16"),
        ("data.global_batch_sequences=0", r"data\.global_batch_sequences=0: must be positive"),
        ("data.micro_batch_sequences=3", r"data\.micro_batch_sequences=3: does not divide .*choose one of"),
        ("optim.decay=step", r"optim\.decay=step: unknown; choose one of constant, cosine"),
        ("optim.betas=[0.9]", r"optim\.betas=\[0\.9\]: must be two numbers"),
        ("objective.t_min=0", r"objective\.t_min=0\.0.*0 < t_min"),
        ("trainer.devices=2", r"strategy\.name=single: cannot use 2 processes; set strategy=ddp"),
        ("trainer.precision=fp8", r"trainer\.precision=fp8: unknown"),
        ("ckpt_path=last", r"ckpt_path=last: .*holds no last\.ckpt"),
        ("ckpt_path=gone.ckpt", r"ckpt_path=gone\.ckpt: no such file"),
        ("init_from=gone.ckpt", r"init_from=gone\.ckpt: no such file"),
        ("init_weights=best", r"init_weights=best: unknown; choose one of raw, ema"),
        ("callbacks.ema.decay=1.5", r"callbacks\.ema\.decay=1\.5"),
        ("schedule.name=quadratic", r"schedule\.name=quadratic: unknown"),
    ],
)
def test_validation_errors_are_one_line(tmp_path: Path, override: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        validate_train(compose_config("train", overrides(tmp_path, "x", override)))
    assert "\n" not in str(caught.value)


def test_all_problems_at_once(tmp_path: Path) -> None:
    bad = ["soft_mask.omega_s=2", "soft_mask.omega_b=1", "trainer.devices=3", "optim.lr=-1"]
    with pytest.raises(UserError, match=r"5 problems") as caught:
        validate_train(compose_config("train", overrides(tmp_path, "x", *bad)))
    for text in ("omega_s=2", "omega_b=1", "strategy.name=single", "global_batch_sequences=8", "optim.lr=-1"):
        assert text in str(caught.value)


def test_ddp_insists_on_unused_parameters(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"strategy\.find_unused_parameters=false: .*would hang"):
        validate_train(
            compose_config("train", overrides(tmp_path, "x", "strategy=ddp", "strategy.find_unused_parameters=false"))
        )


def test_corpus_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.paths"):
        run(tmp_path, "missing", f"data.paths=[{tmp_path / 'nowhere'}]")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty"):
        run(tmp_path, "empty-run", f"data.paths=[{tmp_path / 'empty'}]")
    with pytest.raises(UserError, match=r"data\.length=100000.*tokens"):
        run(tmp_path, "long", "data.length=100000")


def test_output_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output_dir=.*is a file, not a folder"):
        validate_train(compose_config("train", [*overrides(tmp_path, "x"), f"output_dir={tmp_path / 'file' / 'run'}"]))


def test_output_folder_that_is_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match=r"output_dir=.*is not writable"):
        validate_train(compose_config("train", overrides(tmp_path, "x")))


@pytest.mark.parametrize(
    ("program", "argument"), [("train.py", "trainer.max_stepz=3"), ("train.py", "soft_mask.omega_s=7"),
                              ("eval.py", "checkpoint=gone.ckpt")]
)
def test_programs_end_with_one_line_and_status_2(tmp_path: Path, program: str, argument: str) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / program), argument], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert argument.split("=")[0].split(".")[-1] in lines[0]
