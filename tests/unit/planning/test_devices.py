"""`smd plan` over several devices: bytes sent against the collectives that DDP and FSDP2 really call, and what fits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from sm_diffusion.app.compose import compose_and_validate
from sm_diffusion.cli import main as cli
from sm_diffusion.denoisers.dit.model import DiT, DiTShape
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.diffusion.predictor import SoftMaskPredictor
from sm_diffusion.diffusion.readouts.base import Logits
from sm_diffusion.diffusion.soft_mask import SoftMask
from sm_diffusion.planning import devices as plan_scale
from sm_diffusion.planning import plan
from sm_diffusion.training.checkpoints.writer import Writer
from sm_diffusion.training.strategies.fsdp import ShardedStrategy
from sm_diffusion.training.strategies.sharding import ShardSettings, shard_predictor

# Sizes that 4 devices divide, so that no shard is padded.
SHAPE = DiTShape(vocab_size=40, width=32, num_blocks=3, num_heads=2, cond_width=16)
DEVICES = 4
STEP = plan_scale.Step(num_devices=DEVICES, micro_steps=1, p_sm=0.0)


@pytest.fixture
def devices() -> Iterator[None]:
    """A process group of four ranks in one process: its collectives send nothing, and are called all the same."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=DEVICES)  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        dist.destroy_process_group()


class Sent(TorchDispatchMode):
    """Bytes of the whole tensor (gathered, to be scattered, or reduced) of every collective, by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        if func.namespace == "c10d":
            # Gathers write to their first argument; the others read the tensors they are given.
            tensors = {"_allgather_base_": args[:1], "_reduce_scatter_base_": args[1:2]}.get(name, args[0])
            self.bytes[name] += sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))
        return func(*args, **(kwargs or {}))


def predictor() -> SoftMaskPredictor:
    denoiser = DiT(SHAPE, parameterization=Subs(39))
    head = SoftMask(top_k=3, omega_s=0.3, omega_a=3.0, omega_b=-0.75)
    return SoftMaskPredictor(denoiser, head, mask_id=39, mixing=mixing.linear)


def one_step(model: torch.nn.Module, bare: SoftMaskPredictor, *, feedback: bool) -> None:
    ids_BL = torch.full((2, 8), 39)
    memory = bare.bootstrap(ids_BL, torch.arange(ids_BL.numel()), feedback=feedback)
    model(ids_BL, memory, Logits()).square().mean().backward()


def layout(*, gather_bytes: int = 4) -> plan_scale.Layout:
    strategy = compose_and_validate("train", []).strategy
    made = plan.dit_layout(SHAPE, mixed=gather_bytes == 2, strategy=strategy)
    assert made.blocks + made.root == SHAPE.num_parameters()
    return made


@pytest.mark.parametrize("reshard", [True, False])
@pytest.mark.parametrize("feedback", [True, False])
def test_fsdp_sends_what_is_said(devices: None, feedback: bool, reshard: bool) -> None:
    model = predictor()
    shard_predictor(model, init_device_mesh("cpu", (DEVICES,)), ShardSettings(reshard_after_forward=reshard))
    with Sent() as sent:
        one_step(model, model, feedback=feedback)
    step = plan_scale.Step(num_devices=DEVICES, micro_steps=1, p_sm=float(feedback), reshard=reshard)
    said = plan_scale.fsdp_bytes(layout(), step)
    measured = step.share * sum(sent.bytes.values())
    # The three omegas are not in the network's count; each is padded to one element a device.
    assert measured == pytest.approx(said, rel=1e-3)
    assert measured > said


@pytest.mark.parametrize("hold", [True, False])
def test_fsdp_sends_held_gradients_once_for_all_micro_batches(devices: None, hold: bool) -> None:
    settings, model = ShardSettings(hold_gradients=hold), predictor()
    shard_predictor(model, init_device_mesh("cpu", (DEVICES,)), settings)
    strategy = ShardedStrategy(
        settings=settings, layout="sharded", writer=Writer(background=False), data_parallel_size=DEVICES
    )
    strategy.model = model
    with Sent() as sent:
        with strategy.block_backward_sync():  # as Lightning calls it for all micro-batches but the last
            one_step(model, model, feedback=False)
        assert ("_reduce_scatter_base_" in sent.bytes) == (not hold)
        one_step(model, model, feedback=False)
    step = replace(STEP, micro_steps=2, hold=hold)
    assert step.share * sum(sent.bytes.values()) == pytest.approx(plan_scale.fsdp_bytes(layout(), step), rel=1e-3)


def test_ddp_sends_gradients_once_a_step(devices: None) -> None:
    """The feedback pass and a micro-step under no_sync send nothing."""
    model = predictor()
    replicated = DistributedDataParallel(model, find_unused_parameters=False)
    reduced: list[int] = []

    def hook(state, bucket):  # type: ignore[no-untyped-def]  # DDP reads annotations, which are strings here
        reduced.append(bucket.buffer().numel() * bucket.buffer().element_size())
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    replicated.register_comm_hook(None, hook)  # type: ignore[no-untyped-call]
    with replicated.no_sync():
        one_step(replicated, model, feedback=True)
    assert not reduced
    one_step(replicated, model, feedback=True)
    step = plan_scale.Step(num_devices=DEVICES, micro_steps=2, p_sm=1.0)
    measured = 2 * step.share * sum(reduced)
    omegas = 2 * step.share * 4 * sum(p.numel() for p in model.soft_mask.parameters() if p.requires_grad)
    assert measured == plan_scale.ddp_bytes(layout(), step) + omegas


def test_zero_is_two_and_three_times_the_weights() -> None:
    """ZeRO's paper: 2 Psi with sharded gradients, 3 Psi with sharded weights (here plus the feedback pass)."""
    step = plan_scale.Step(num_devices=10**6, micro_steps=1, p_sm=0.0)
    weights = 4 * SHAPE.num_parameters()
    assert plan_scale.zero2_bytes(layout(), step) == pytest.approx(2 * weights, rel=1e-4)
    assert plan_scale.zero3_bytes(layout(), step) == pytest.approx(3 * weights, rel=1e-4)
    assert plan_scale.zero1_bytes(layout(), step) <= plan_scale.ddp_bytes(layout(), step)


def test_shards_are_what_a_rank_holds(devices: None) -> None:
    """Weights, gradients and moments of FSDP2: a share for each device."""
    model = predictor()
    shard_predictor(model, init_device_mesh("cpu", (DEVICES,)), ShardSettings())
    held = sum(p.to_local().numel() * 4 for p in model.denoiser.parameters())  # type: ignore[attr-defined]
    whole = {part: 4.0 * SHAPE.num_parameters() for part in ("weights (float32)", "gradients (float32)")}
    whole["one chunk of logits"] = 100.0
    sizes = plan_scale.on_each_device(whole, layout(), strategy="fsdp", step=STEP)
    assert sizes["weights (float32)"] == sizes["gradients (float32)"] == held
    assert sizes["one chunk of logits"] == 100.0
    assert sizes[plan_scale.GATHERED] > 0
    assert plan_scale.on_each_device(whole, layout(), strategy="ddp", step=STEP) == whole
    held_whole = plan_scale.on_each_device(whole, layout(), strategy="fsdp", step=replace(STEP, micro_steps=2))
    assert held_whole["gradients (float32)"] == whole["gradients (float32)"]
    two = plan_scale.on_each_device(whole, layout(), strategy="deepspeed_zero2", step=STEP)
    assert (two["weights (float32)"], two["gradients (float32)"]) == (4 * held, held)


@pytest.mark.parametrize("most", [0, 1, 2, 3, 7, 64, 1000])
def test_largest_micro_batch_is_the_last_that_fits(most: int) -> None:
    found = plan_scale.largest_micro_batch(lambda sequences: 10.0 * sequences + 3, limit_bytes=10.0 * most + 4)
    assert found == most


def test_fit_agrees_with_the_memory_of_the_plan() -> None:
    config = compose_and_validate("train", ["model=dit_169m", "data.length=1024"])
    made = {
        sequences: plan.make_plan(
            plan_scale.with_micro_batch(config, sequences), vocab=50258, on_gpu=True, num_devices=1
        ).total_bytes
        for sequences in (1, 2, 3)
    }
    found = plan_scale.largest_micro_batch(lambda sequences: made[min(3, sequences)], limit_bytes=made[2])
    assert (found, made[1] < made[2] < made[3]) == (2, True)
    assert config.data.micro_batch_sequences is None


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["data.length=1024", "data.global_batch_sequences=512", "--vocab", "50258", "--devices", "8"]
    arguments = ["model=dit_169m", "strategy=fsdp", *sizes, "--tokens", "26.2144e9", "--price", "2"]
    assert cli.main(["plan", *arguments]) == 0
    out = capsys.readouterr().out
    assert "50,000 steps" in out
    assert "<- strategy" in next(line for line in out.splitlines() if line.startswith("  fsdp"))
    hours = float(next(line for line in out.splitlines() if line.startswith("device-hours")).split()[1].strip(","))
    flops = 936e6 * 26.2144e9
    assert hours == pytest.approx(flops / (989e12 * 0.4) / 3600, rel=0.01)
    assert max(map(len, out.splitlines())) <= 110


@pytest.mark.parametrize("arguments", [["--tokens", "0"], ["--price", "-1"], ["--memory", "nan"]])
def test_bad_input_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert "give a positive number" in error
    assert error.count("\n") == 1
