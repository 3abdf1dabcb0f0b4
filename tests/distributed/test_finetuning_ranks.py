"""Fine-tune -> adapter -> merge -> export -> generate through the programs: two processes give the numbers of one."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sm_diffusion.cli import main as cli
from sm_diffusion.denoisers.adapters import peft
from sm_diffusion.denoisers.pretrained.loading import open_backbone
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.predictor import SoftMaskPredictor
from tests.helpers.chats import generated, overrides

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
RUNS = {
    "one": [],
    "ddp": ["strategy=ddp_cpu", "trainer.devices=2"],
    "fsdp": ["strategy=fsdp_cpu", "trainer.devices=2"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All runs: train.py as a user would start it; Lightning starts the second process itself."""
    root = tmp_path_factory.mktemp("ranks")
    for name, extra in RUNS.items():
        command = [sys.executable, str(ROOT / "train.py"), *overrides(root, name, *extra)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
    return root


def losses(folder: Path) -> list[float]:
    found: dict[int, float] = {}
    for file in sorted((folder / "metrics").rglob("metrics.csv")):
        with file.open() as lines:
            found |= {int(row["step"]): float(row["train/loss"]) for row in csv.DictReader(lines) if row["train/loss"]}
    return [found[step] for step in sorted(found)]


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_losses_adapter_and_omegas(root: Path, name: str) -> None:
    one, two = losses(root / "one"), losses(root / name)
    assert len(one) == 4
    assert one == pytest.approx(two, rel=1e-5)
    found = [json.loads((root / run / "results.json").read_text()) for run in ("one", name)]
    assert found[0]["metrics"]["val/nll"] == pytest.approx(found[1]["metrics"]["val/nll"], rel=1e-5)
    assert found[0]["omegas"] == pytest.approx(found[1]["omegas"], rel=1e-5)
    for file in ("adapter_model.safetensors", peft.OMEGA_FILE):
        first, second = load_file(root / "one" / "adapter" / file), load_file(root / name / "adapter" / file)
        assert first.keys() == second.keys()
        assert not all(torch.equal(tensor, torch.zeros_like(tensor)) for tensor in first.values())
        for key, tensor in first.items():
            torch.testing.assert_close(second[key], tensor, atol=1e-5, rtol=1e-4, msg=key)


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_merged_models_generate_the_same_tokens(root: Path, name: str) -> None:
    texts = {}
    for run in ("one", name):
        full = root / f"full-{run}-{name}"
        words = ["convert", "merge", str(root / run / "adapter"), str(full), "--dtype", "float32"]
        assert cli.main(words) == 0
        backbone, soft_mask = open_backbone(str(full), dtype=torch.float32), peft.read_soft_mask(full)
        assert soft_mask is not None
        predictor = SoftMaskPredictor(backbone.denoiser, soft_mask, mask_id=backbone.mask_id, mixing=mixing.linear)
        texts[run] = generated(predictor)
    assert texts["one"] == texts[name]


def test_the_checkpoint_of_shards_gives_the_same_adapter(root: Path) -> None:
    checkpoint = root / "fsdp" / "checkpoints" / "last.ckpt"
    assert cli.main(["convert", "adapter", str(checkpoint), str(root / "again")]) == 0
    for file in ("adapter_model.safetensors", peft.OMEGA_FILE):
        first, second = load_file(root / "fsdp" / "adapter" / file), load_file(root / "again" / file)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
