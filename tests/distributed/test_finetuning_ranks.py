"""A fine-tuning of adapters in two processes gives the numbers of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sm_diffusion.denoisers import peft
from tests.helpers.chats import overrides

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ROOT = Path(__file__).parents[2]


def launch(root: Path, name: str, *extra: str) -> Path:
    """train.py as a user would start it; Lightning starts the second process itself."""
    command = [sys.executable, str(ROOT / "train.py"), *overrides(root, name, *extra)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return root / name


def test_two_ddp_processes_equal_one(tmp_path: Path) -> None:
    one = launch(tmp_path, "one")
    two = launch(tmp_path, "two", "strategy=ddp_cpu", "trainer.devices=2")
    for file in ("adapter_model.safetensors", peft.OMEGA_FILE):
        first, second = load_file(one / "adapter" / file), load_file(two / "adapter" / file)
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            torch.testing.assert_close(second[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    metrics = [json.loads((folder / "results.json").read_text())["metrics"]["val/nll"] for folder in (one, two)]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-5)
