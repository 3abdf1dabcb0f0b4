"""Every evaluation has a folder of its own, named by what was evaluated."""

from __future__ import annotations

import pytest

from sm_diffusion.config.compose import compose_config
from sm_diffusion.config.store import evaluated


@pytest.mark.parametrize(
    ("checkpoint", "folder"),
    [
        ("runs/base/checkpoints/last.ckpt", "base"),
        ("runs/quickstart/sm/checkpoints/last.ckpt", "quickstart/sm"),
        ("/home/me/runs/a/checkpoints/best-30.ckpt", "a/best-30"),
        ("runs/base", "base"),
        ("elsewhere/mine/checkpoints/last.ckpt", "mine"),
        ("downloads/MDLM.ckpt", "MDLM"),
        ("../x/model.safetensors", "model"),
        ("owner/name@0123abc", "owner-name"),
        ("/", "model"),
    ],
)
def test_the_folder_of_an_evaluation(checkpoint: str, folder: str) -> None:
    assert evaluated(checkpoint) == folder


def test_four_evaluations_have_four_folders() -> None:
    found = {
        compose_config("eval", [f"checkpoint=runs/{run}/checkpoints/last.ckpt", f"evaluator={name}"]).output_dir
        for run in ("a", "b")
        for name in ("perplexity", "generative")
    }
    assert found == {f"runs/eval/{run}/{name}" for run in ("a", "b") for name in ("perplexity", "generative")}
