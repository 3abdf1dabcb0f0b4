"""Which command lines go on from a run's folder alone. Whole runs: tests/e2e/test_going_on.py."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sm_diffusion.config.compose import compose_config
from sm_diffusion.config.continued import continued, run_to_continue
from sm_diffusion.config.nodes import plain
from sm_diffusion.types import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(plain(compose_config("train", []))))
    return tmp_path


def test_only_the_folder_of_a_run_counts(folder: Path) -> None:
    run = run_to_continue(["seed=2", f"ckpt_path={folder}"])
    assert run is not None
    assert run.path == folder
    assert run_to_continue([f"ckpt_path='{folder}'"]) is not None
    for words in ([], ["ckpt_path=last"], ["ckpt_path=auto"], [f"ckpt_path={folder / 'x.ckpt'}"],
                  [f"ckpt_path={folder.parent}"], ["-m", f"ckpt_path={folder}"]):  # fmt: skip
        assert run_to_continue(words) is None


def test_a_run_without_a_checkpoint_is_refused(folder: Path) -> None:
    run = run_to_continue([f"ckpt_path={folder}"])
    assert run is not None
    with pytest.raises(UserError, match=r"holds no checkpoints/last\.ckpt to go on from"):
        continued(run, [f"ckpt_path={folder}"])
