"""How a step is spread over processes: settings of every strategy."""

from __future__ import annotations

from dataclasses import dataclass

from sm_diffusion.registry import register


@register("strategy", "strategy")
@dataclass
class StrategySettings:
    name: str = "single"  # single | ddp | fsdp | deepspeed
    backend: str = "auto"  # auto | gloo | nccl
    find_unused_parameters: bool | None = None  # ddp; null: what the variant needs
    timeout_seconds: float = 1800.0  # a collective that takes longer ends the job
    gather_dtype: str = "auto"  # fsdp: of gathered blocks: auto (bfloat16 with bf16-mixed) | float32 | bfloat16
    reduce_dtype: str = "float32"  # fsdp: in which gradients are summed over ranks: float32 | bfloat16
    reshard_after_forward: bool = True  # fsdp: false gathers blocks once a step and holds them: faster, more memory
    hold_gradients: bool = True  # fsdp: keep whole gradients between micro-batches; false: send and shard after each
    cpu_offload: bool = False  # fsdp, deepspeed: shards and optimiser states in host memory
    zero_stage: int = 2  # deepspeed: 1 | 2 | 3
