"""Two gloo processes against one: equal losses and weights, one coin, equal omegas. Two ranks run for real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.ranks import Jobs, run_on_ranks
from tests.helpers.runs import overrides
from tests.helpers.strategies import STEPS, alone, assert_equal, assert_same_sequences, strategy

pytestmark = pytest.mark.distributed

ROOT = Path(__file__).parents[2]


SHARDS = ("layout=sharded", "async_save=true")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of five steps in one process, and in two under DDP and FSDP2."""
    root = tmp_path_factory.mktemp("ranks")
    alone(root, "one-mdlm", "variant=mdlm")
    alone(root, "one-soft")
    jobs: Jobs = [
        ("ddp-mdlm", ["variant=mdlm", *strategy("ddp")]),
        ("ddp-soft", strategy("ddp")),
        ("fsdp-soft", [*strategy("fsdp"), *(f"callbacks.checkpoint.{key}" for key in SHARDS)]),
    ]
    run_on_ranks(root, [(name, [*STEPS, *extra]) for name, extra in jobs])
    return root


@pytest.mark.parametrize("two", ["ddp-mdlm", "ddp-soft", "fsdp-soft"])
def test_two_ranks_equal_one(root: Path, two: str) -> None:
    one = f"one-{two.partition('-')[2]}"
    assert_equal(root, two, one)
    assert_same_sequences(root, two, one)


def test_train_py_starts_the_second_process_itself(root: Path) -> None:
    settings = overrides(root, "user", *STEPS, "trainer.val_every_steps=0", *strategy("ddp"))
    command = [sys.executable, str(ROOT / "train.py"), *settings]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal(root, "user", "one-soft")
    assert not (root / "user/heartbeat").exists()


def _omegas_over_steps(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    from torch.nn.parallel import DistributedDataParallel

    from sm_diffusion.denoisers.dit.model import DiT, DiTShape
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
