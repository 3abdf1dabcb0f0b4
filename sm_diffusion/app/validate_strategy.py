"""What combines with what across processes: strategy, variant, EMA, checkpoints, precision, devices."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator

import torch

from sm_diffusion.config.root import TrainConfig
from sm_diffusion.registry import problems_of
from sm_diffusion.training.strategies.settings import NO_DEEPSPEED
from sm_diffusion.training.trainer_settings import SKIPPED_STEPS, TRACED_STEPS

COMPILERS = ("g++", "clang++")  # what inductor writes C++ for


def strategy_problems(config: TrainConfig) -> Iterator[str]:
    """One line for each problem: key=value: what is wrong; what to set instead."""
    strategy, trainer = config.strategy, config.trainer
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.cuda.is_available())
    yield from problems_of(strategy)
    yield from _processes(config, on_cpu=on_cpu)
    yield from _ignored(config)
    yield from _checkpoints(config)
    yield from _compiled(config, on_cpu=on_cpu)
    if strategy.name == "deepspeed":
        yield from _deepspeed(config, on_cpu=on_cpu)


def _compiled(config: TrainConfig, *, on_cpu: bool) -> Iterator[str]:
    trainer = config.trainer
    first = SKIPPED_STEPS + TRACED_STEPS
    if trainer.profile and trainer.max_steps < first:
        yield f"trainer.profile=true: traces steps up to {first} of {trainer.max_steps}; set trainer.max_steps={first}"
    if not trainer.compile:
        return
    if config.strategy.name == "deepspeed":
        yield "trainer.compile=true: DeepSpeed's hooks do not fit compiled blocks; set strategy=fsdp or ddp"
    if trainer.compile_backend == "inductor" and on_cpu and not any(map(shutil.which, COMPILERS)):
        yield (
            f"trainer.compile=true: needs a C++ compiler ({' or '.join(COMPILERS)}) on the CPU; "
            "install one, or set trainer.compile=false"
        )


def _processes(config: TrainConfig, *, on_cpu: bool) -> Iterator[str]:
    strategy, trainer = config.strategy, config.trainer
    world = trainer.devices * trainer.num_nodes
    if strategy.name == "single" and world > 1:
        yield f"strategy.name=single: cannot use {world} processes; set strategy=ddp or trainer.devices=1"
    if on_cpu and strategy.backend == "nccl":
        yield "strategy.backend=nccl: needs GPUs; set strategy.backend=gloo or trainer.accelerator=cuda"
    if not on_cpu and trainer.devices > torch.cuda.device_count():
        yield (
            f"trainer.devices={trainer.devices}: this machine has {torch.cuda.device_count()} GPUs; "
            f"set trainer.devices={torch.cuda.device_count()}"
        )
    if strategy.name == "ddp" and strategy.find_unused_parameters is False and config.variant.name == "soft_masked":
        yield (
            "strategy.find_unused_parameters=false: steps without feedback leave the omegas without gradient and DDP "
            "would hang; set strategy.find_unused_parameters=null"
        )


def _ignored(config: TrainConfig) -> Iterator[str]:
    """Settings that the chosen strategy would not read."""
    strategy = config.strategy
    if strategy.find_unused_parameters is not None and strategy.name != "ddp":
        yield (
            f"strategy.find_unused_parameters={strategy.find_unused_parameters}: only ddp reads it; "
            "set strategy.find_unused_parameters=null"
        )
    if strategy.cpu_offload and strategy.name not in ("fsdp", "deepspeed"):
        yield f"strategy.cpu_offload=true: {strategy.name} cannot offload; set strategy=fsdp_offload, or false"
    if strategy.gather_dtype != "auto" and strategy.name != "fsdp":
        yield f"strategy.gather_dtype={strategy.gather_dtype}: only fsdp reads it; set strategy.gather_dtype=auto"
    if strategy.name == "fsdp" and strategy.gather_dtype == "bfloat16" and config.trainer.precision == "32-true":
        yield (
            "strategy.gather_dtype=bfloat16: trainer.precision=32-true computes in float32; "
            "set trainer.precision=bf16-mixed or strategy.gather_dtype=auto"
        )


def _checkpoints(config: TrainConfig) -> Iterator[str]:
    layout = config.callbacks.checkpoint.layout
    if layout == "sharded" and config.strategy.name != "fsdp":
        yield (
            f"callbacks.checkpoint.layout=sharded: strategy.name={config.strategy.name} writes one file; "
            "set strategy=fsdp or callbacks.checkpoint.layout=consolidated"
        )


def _deepspeed(config: TrainConfig, *, on_cpu: bool) -> Iterator[str]:
    strategy = config.strategy
    if importlib.util.find_spec("deepspeed") is None:
        yield NO_DEEPSPEED
    if strategy.zero_stage not in (1, 2, 3):
        yield f"strategy.zero_stage={strategy.zero_stage}: choose 1, 2 or 3"
    if strategy.zero_stage == 3 and config.peft.kind != "none":
        yield (
            f"peft.kind={config.peft.kind}: adapters are not written from ZeRO-3's slices; "
            "set strategy=fsdp, or strategy.zero_stage=2"
        )
    if on_cpu and strategy.cpu_offload:
        yield "strategy.cpu_offload=true: this run is on the CPU already; set strategy=deepspeed_cpu"
