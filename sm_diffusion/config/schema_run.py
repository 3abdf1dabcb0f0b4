"""Settings of how a run is carried out: optimiser, callbacks, trainer, strategy, loggers."""

from __future__ import annotations

from dataclasses import dataclass, field

from sm_diffusion.registry import MISSING, register


@register("optim", "adamw")
@dataclass
class OptimConfig:
    name: str = "adamw"
    lr: float = 3e-4  # network
    omega_lr: float = 1e-2  # omegas
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0  # network only
    warmup_steps: int = 2500  # linear
    decay: str = "constant"  # constant | cosine (to min_lr_ratio at trainer.max_steps)
    min_lr_ratio: float = 0.0
    clip_norm: float = 1.0  # global gradient norm; 0: no clipping


@dataclass
class EMAConfig:
    enabled: bool = True
    decay: float = 0.9999  # per step, in [0, 1); ramps up as (1 + n) / (10 + n)
    scope: str = "network"  # network (as published) | all (omegas too)


@dataclass
class CheckpointConfig:
    every_steps: int = 1000
    keep_every: bool = False  # keep each periodic checkpoint, not only the newest
    keep_best: int = 1  # by validation NLL
    layout: str = "consolidated"  # consolidated (one file) | sharded (fsdp: a folder, every rank writes its part)
    async_save: bool = False  # write while training goes on; memory for one more copy of the checkpoint
    verify: bool = True  # compare a checkpoint with its checksum before a run continues from it


@register("callbacks", "callbacks")
@dataclass
class CallbacksConfig:
    ema: EMAConfig = field(default_factory=EMAConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    progress_seconds: float = 10.0  # between progress lines where the output is not a terminal
    plots: bool = True  # loss and lambda(entropy) as PNG at the end


# ------------------------------------------------------------------------------------- trainer, strategy, logger


SKIPPED_STEPS, TRACED_STEPS = 3, 3  # of trainer.profile


@register("trainer", "trainer")
@dataclass
class TrainerConfig:
    max_steps: int = MISSING  # optimizer steps
    max_flops: float | None = None  # training FLOPs that end a run early; null: none
    val_every_steps: int = 1000  # optimizer steps; 0: only at the end
    log_every_steps: int = 50
    precision: str = "auto"  # auto (bf16-mixed on CUDA, 32-true elsewhere) | 32-true | bf16-mixed
    accelerator: str = "auto"  # auto | cpu | cuda
    devices: int = 1  # processes a node
    num_nodes: int = 1
    deterministic: bool = False
    threads: int | None = None  # CPU threads; null: torch's choice
    compile: bool = False  # torch.compile of the blocks: faster steps, minutes for the first one
    compile_backend: str = "inductor"  # inductor | aot_eager | eager (the last two: to find faults)
    profile: bool = False  # trace optimizer steps 3 to 5 into <output_dir>/profile


@register("strategy", "strategy")
@dataclass
class StrategyConfig:
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


@register("logger", "logger")
@dataclass
class LoggerConfig:
    csv: bool = True
    wandb: str = "disabled"  # disabled | offline | online
    project: str = "sm_diffusion"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
