"""Folders of the runs of a sweep."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
from hydra.types import RunMode

from sm_diffusion.config import launch


@pytest.mark.parametrize(("settings", "kept"), [({}, False), ({"SM_DIFFUSION_ONE_RUN": "1"}, True)])
def test_only_runs_of_a_sweep_get_folders_of_their_own(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], kept: bool
) -> None:
    found = SimpleNamespace(
        mode=RunMode.MULTIRUN,
        job=SimpleNamespace(num=3, env_set=settings),
        overrides=SimpleNamespace(task=["model=dit_tiny", "overwrite=True", "seed=2"]),
    )
    monkeypatch.setattr(launch.HydraConfig, "get", lambda: found)
    monkeypatch.setattr(sys, "argv", ["launcher"])  # a job's own process has another command line
    monkeypatch.setenv(launch.TYPED, '["-m", "model=dit_tiny", "overwrite=true", "seed=1,2"]')
    folder = launch._per_job(SimpleNamespace(output_dir="runs/a")).output_dir
    assert folder == ("runs/a" if kept else "runs/a/003-seed_2")
