"""Two gloo processes against one: equal weights, one coin, equal omegas. Two ranks run for real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sm_diffusion.denoisers.convert import read_weights
from tests.helpers.runs import overrides

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]


def launch(root: Path, name: str, *extra: str) -> Path:
    """train.py as a user would start it; Lightning starts the second process itself."""
    # Float64 would hide nothing: float32 sums differ in the 8th digit between one rank and two.
    command = [sys.executable, str(ROOT / "train.py"), *overrides(root, name, "trainer.val_every_steps=0", *extra)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return root / name / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("variant", ["mdlm", "soft_masked"])
def test_two_ranks_equal_one(tmp_path: Path, variant: str) -> None:
    settings = (f"variant={variant}", "trainer.max_steps=5")
    one = launch(tmp_path, "one", *settings)
    two = launch(tmp_path, "two", *settings, "strategy=ddp_cpu", "trainer.devices=2")
    for kind in ("raw", "ema"):
        first, second = read_weights(one, weights=kind), read_weights(two, weights=kind)
        tensors = [(first.denoiser[n], second.denoiser[n]) for n in first.denoiser]
        tensors += [(first.soft_mask[n], second.soft_mask[n]) for n in first.soft_mask]
        for a, b in tensors:
            assert (a - b).abs().max() <= 1e-6 * max(1.0, float(a.abs().max()))


def _omegas_over_steps(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    from torch.nn.parallel import DistributedDataParallel

    from sm_diffusion.denoisers.dit import DiT, DiTShape
    from sm_diffusion.diffusion import mixing
    from sm_diffusion.diffusion.objective import MDLMObjective
    from sm_diffusion.diffusion.parameterization import Subs
    from sm_diffusion.diffusion.predictor import SoftMaskPredictor
    from sm_diffusion.diffusion.schedule import LogLinear, StratifiedTimes
    from sm_diffusion.diffusion.soft_mask import SoftMask
    from sm_diffusion.training import rng
    from sm_diffusion.types import Batch

    torch.manual_seed(rank)  # the ranks' own streams differ; DDP broadcasts rank 0's weights
    shape = DiTShape(vocab_size=12, width=8, num_blocks=1, num_heads=2, cond_width=4)
    model = DiT(shape, parameterization=Subs(11))
    soft_mask = SoftMask(top_k=2, omega_s=0.3, omega_a=3.0, omega_b=-0.75)
    predictor = SoftMaskPredictor(model, soft_mask, mask_id=11, mixing=mixing.linear)
    objective = MDLMObjective(schedule=LogLinear(), times=StratifiedTimes(), mask_id=11)

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.predictor = predictor

        def forward(self, batch: Batch, step: int, feedback: bool) -> torch.Tensor:
            draws = rng.training_draws([2 * rank, 2 * rank + 1], 6, num_rows=4, seed=0, step=step)
            return objective(self.predictor, batch, draws, feedback=feedback).loss

    ddp = DistributedDataParallel(Step(), find_unused_parameters=True)
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-2)
    rows = []
    for step in range(200):
        generator = torch.Generator().manual_seed(1000 * step + rank)
        batch = Batch(torch.randint(0, 11, (2, 6), generator=generator), torch.arange(2))
        feedback = rng.coin(seed=0, step=step) < 0.8
        optimizer.zero_grad()
        ddp(batch, step, feedback).backward()
        optimizer.step()
        omegas = torch.cat([soft_mask.omega_s, soft_mask.omega_a, soft_mask.omega_b]).detach()
        rows.append(torch.cat([omegas, torch.tensor([float(feedback)])]))
    torch.save(torch.stack(rows), f"{folder}/rank{rank}.pt")
    torch.distributed.destroy_process_group()


def test_coin_and_omegas_agree_for_200_steps(tmp_path: Path) -> None:
    port = 29_500 + os.getpid() % 400
    torch.multiprocessing.spawn(_omegas_over_steps, args=(port, str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert torch.equal(first, second)
    assert 0.7 < first[:, 3].mean() < 0.9
    assert (first[-1, :3] - first[0, :3]).abs().min() > 1e-4, "the omegas must have moved"
