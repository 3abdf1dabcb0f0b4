"""How a step is spread over processes: what a user chooses as `strategy`, and the Lightning strategy it builds."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

import torch

from sm_diffusion.registry import name_of, register
from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy

    from sm_diffusion.training.checkpoints.writer import Writer

NO_DEEPSPEED = "strategy.name=deepspeed: not installed; pip install 'sm-diffusion[scale]', or set strategy=fsdp"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class StrategyContext:
    """What a strategy needs to know of the run.

    accelerator: cpu | cuda.      mixed: computes in bfloat16.       num_processes: on all nodes.
    feeds_back:  some steps leave the omegas without a gradient.     layout: of checkpoints.      writer: of them.
    """

    accelerator: str
    mixed: bool
    num_processes: int
    feeds_back: bool
    layout: str
    writer: Writer


@dataclass(frozen=True, kw_only=True)
class StrategySettings(ABC):
    """The settings of all strategies; each reads its own, and what it does not read must stay at its default."""

    backend: Literal["auto", "gloo", "nccl"] = "auto"
    find_unused_parameters: bool | None = None  # ddp; null: what the variant needs
    timeout_seconds: float = 1800.0  # a collective that takes longer ends the job
    gather_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # fsdp: of gathered blocks; auto: as computed
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"  # fsdp: in which gradients are summed over ranks
    reshard_after_forward: bool = True  # fsdp: false gathers blocks once a step and holds them: faster, more memory
    hold_gradients: bool = True  # fsdp: keep whole gradients between micro-batches; false: send and shard after each
    cpu_offload: bool = False  # fsdp, deepspeed: shards and optimiser states in host memory
    zero_stage: int = 2  # deepspeed: 1 | 2 | 3

    @property
    def name(self) -> str:
        """What it is registered as."""
        return name_of("strategy", type(self))

    def problems(self) -> Iterator[str]:
        if not self.timeout_seconds > 0:
            yield f"strategy.timeout_seconds={self.timeout_seconds}: must be positive"

    @abstractmethod
    def build(self, run: StrategyContext) -> Strategy:
        """UserError when its package is not installed."""

    def process_group(self, run: StrategyContext) -> dict[str, Any]:
        """The group's backend, and the seconds after which torch gives up on a collective."""
        from sm_diffusion.training.watchdog.watchdog import group_timeout

        backend: str = self.backend
        if backend == "auto":
            # Offloaded shards are clipped and saved on the CPU: they need a CPU backend beside NCCL.
            on_cpu = run.accelerator == "cpu"
            backend = "gloo" if on_cpu else "cpu:gloo,cuda:nccl" if self.cpu_offload else "nccl"
        return {"process_group_backend": backend, "timeout": timedelta(seconds=group_timeout(self.timeout_seconds))}


def single_process(accelerator: str) -> Strategy:
    """One process on the machine's CPU or first GPU. accelerator: cpu or cuda."""
    from sm_diffusion.training.strategies.replicated import SingleProcessStrategy

    return SingleProcessStrategy(torch.device("cpu") if accelerator == "cpu" else torch.device(accelerator, 0))


def evaluation_strategy(accelerator: str, *, devices: int) -> Strategy:
    """Where an evaluation needs the trainer's loop: whole parameters on every device."""
    from sm_diffusion.training.strategies.replicated import ReplicatedStrategy

    return single_process(accelerator) if devices == 1 else ReplicatedStrategy()


@register("strategy", "single")
@dataclass(frozen=True, kw_only=True)
class Single(StrategySettings):
    """One process on one device."""

    def build(self, run: StrategyContext) -> Strategy:
        return single_process(run.accelerator)


@register("strategy", "ddp")
@dataclass(frozen=True, kw_only=True)
class Replicated(StrategySettings):
    """One process a device; gradients are averaged by an all-reduce."""

    def build(self, run: StrategyContext) -> Strategy:
        from sm_diffusion.training.strategies.replicated import ReplicatedStrategy

        unused = run.feeds_back if self.find_unused_parameters is None else self.find_unused_parameters
        return ReplicatedStrategy(
            find_unused_parameters=unused, gradient_as_bucket_view=True, **self.process_group(run)
        )


@register("strategy", "fsdp")
@dataclass(frozen=True, kw_only=True)
class Sharded(StrategySettings):
    """FSDP2: weights, gradients and optimiser states are sharded over all processes."""

    def build(self, run: StrategyContext) -> Strategy:
        from sm_diffusion.training.strategies.fsdp import ShardedStrategy
        from sm_diffusion.training.strategies.sharding import ShardSettings

        gather: str = self.gather_dtype
        if gather == "auto":
            gather = "bfloat16" if run.mixed else "float32"
        return ShardedStrategy(
            # "auto" would mean one data-parallel group a node: every rank of a node would read the same rows.
            data_parallel_size=run.num_processes,
            settings=ShardSettings(
                gather_dtype=None if gather == "float32" else DTYPES[gather],
                reduce_dtype=DTYPES[self.reduce_dtype],
                reshard_after_forward=self.reshard_after_forward,
                hold_gradients=self.hold_gradients,
                cpu_offload=self.cpu_offload,
            ),
            layout=run.layout,
            writer=run.writer,
            **self.process_group(run),
        )


@register("strategy", "deepspeed")
@dataclass(frozen=True, kw_only=True)
class Zero(StrategySettings):
    """ZeRO of DeepSpeed: optimiser states, gradients and with stage 3 weights are sharded."""

    def build(self, run: StrategyContext) -> Strategy:
        if importlib.util.find_spec("deepspeed") is None:
            raise UserError(NO_DEEPSPEED)
        from sm_diffusion.training.strategies.zero import ZeroStrategy

        return ZeroStrategy(
            stage=self.zero_stage,
            offload=self.cpu_offload,
            on_cpu=run.accelerator == "cpu",
            writer=run.writer,
            **self.process_group(run),
        )
