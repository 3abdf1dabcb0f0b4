"""From strategy settings to a Lightning strategy: one process, DDP, FSDP2 or DeepSpeed."""

from __future__ import annotations

import importlib.util
from datetime import timedelta
from typing import Any

import torch
from lightning.pytorch.strategies import Strategy

from sm_diffusion.config.root import TrainConfig
from sm_diffusion.training.checkpoints.writer import Writer
from sm_diffusion.training.strategies.fsdp import ShardedStrategy
from sm_diffusion.training.strategies.replicated import ReplicatedStrategy, SingleProcessStrategy
from sm_diffusion.training.strategies.sharding import ShardSettings
from sm_diffusion.training.strategies.zero import ZeroStrategy
from sm_diffusion.training.watchdog.watchdog import group_timeout
from sm_diffusion.types import UserError

NO_DEEPSPEED = "strategy.name=deepspeed: not installed; pip install 'sm-diffusion[scale]', or set strategy=fsdp"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def accelerator_of(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def precision_of(name: str, accelerator: str) -> str:
    return ("bf16-mixed" if accelerator == "cuda" else "32-true") if name == "auto" else name


def single_process(accelerator: str) -> Strategy:
    """One process on the machine's CPU or first GPU. accelerator: cpu or cuda."""
    return SingleProcessStrategy(torch.device("cpu") if accelerator == "cpu" else torch.device(accelerator, 0))


def evaluation_strategy(accelerator: str, *, devices: int) -> Strategy:
    """Where an evaluation needs the trainer's loop: whole parameters on every device."""
    return single_process(accelerator) if devices == 1 else ReplicatedStrategy()


def build_strategy(config: TrainConfig, writer: Writer) -> Strategy:
    """The strategy named by the configuration. UserError when its package is not installed."""
    match config.strategy.name:
        case "single":
            return single_process(accelerator_of(config.trainer.accelerator))
        case "ddp":
            return _ddp(config)
        case "fsdp":
            return _fsdp(config, writer)
        case "deepspeed":
            return _deepspeed(config, writer)
        case name:
            raise UserError(f"strategy.name={name}: choose single, ddp, fsdp or deepspeed")


def _shared(config: TrainConfig) -> dict[str, Any]:
    """Process group: its backend, and the seconds after which torch gives up on a collective."""
    strategy = config.strategy
    backend = strategy.backend
    if backend == "auto":
        on_cpu = accelerator_of(config.trainer.accelerator) == "cpu"
        # Offloaded shards are clipped and saved on the CPU: they need a CPU backend beside NCCL.
        backend = "gloo" if on_cpu else "cpu:gloo,cuda:nccl" if strategy.cpu_offload else "nccl"
    seconds = group_timeout(strategy.timeout_seconds)
    return {"process_group_backend": backend, "timeout": timedelta(seconds=seconds)}


def _ddp(config: TrainConfig) -> Strategy:
    find_unused = config.strategy.find_unused_parameters
    if find_unused is None:
        find_unused = config.variant.feeds_back
    return ReplicatedStrategy(
        find_unused_parameters=find_unused, gradient_as_bucket_view=True, **_shared(config)
    )


def _fsdp(config: TrainConfig, writer: Writer) -> Strategy:
    strategy = config.strategy
    precision = precision_of(config.trainer.precision, accelerator_of(config.trainer.accelerator))
    gather = strategy.gather_dtype
    if gather == "auto":
        gather = "bfloat16" if precision == "bf16-mixed" else "float32"
    return ShardedStrategy(
        # "auto" would mean one data-parallel group a node: every rank of a node would read the same rows.
        data_parallel_size=config.trainer.devices * config.trainer.num_nodes,
        settings=ShardSettings(
            gather_dtype=None if gather == "float32" else DTYPES[gather],
            reduce_dtype=DTYPES[strategy.reduce_dtype],
            reshard_after_forward=strategy.reshard_after_forward,
            hold_gradients=strategy.hold_gradients,
            cpu_offload=strategy.cpu_offload,
        ),
        layout=config.callbacks.checkpoint.layout,
        writer=writer,
        **_shared(config),
    )


def _deepspeed(config: TrainConfig, writer: Writer) -> Strategy:
    if importlib.util.find_spec("deepspeed") is None:
        raise UserError(NO_DEEPSPEED)
    return ZeroStrategy(
        stage=config.strategy.zero_stage,
        offload=config.strategy.cpu_offload,
        on_cpu=accelerator_of(config.trainer.accelerator) == "cpu",
        writer=writer,
        **_shared(config),
    )
