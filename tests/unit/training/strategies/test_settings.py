"""Which strategy settings combine, and what is said of those that do not."""

from __future__ import annotations

import importlib.util
import shutil
from datetime import timedelta

import pytest
import torch
from lightning.pytorch.strategies import Strategy

from sm_diffusion.app.trainer import build_strategy
from sm_diffusion.app.validate_strategy import strategy_problems
from sm_diffusion.config.compose import compose_config
from sm_diffusion.training.checkpoints.writer import Writer
from sm_diffusion.training.strategies.fsdp import ShardedStrategy
from sm_diffusion.training.strategies.replicated import ReplicatedStrategy, SingleProcessStrategy
from sm_diffusion.training.watchdog.watchdog import group_timeout
from sm_diffusion.types import UserError


def problems(*overrides: str) -> list[str]:
    try:
        return list(strategy_problems(compose_config("train", ["trainer.accelerator=cpu", *overrides])))
    except UserError as error:  # what the types of the settings say
        return str(error).splitlines()


def built(*overrides: str) -> Strategy:
    return build_strategy(compose_config("train", [*overrides]), Writer(background=False))


@pytest.mark.parametrize("strategy", ["single", "ddp_cpu", "fsdp_cpu"])
def test_shipped_strategies_are_accepted(strategy: str) -> None:
    devices = 1 if strategy == "single" else 2
    assert problems(f"strategy={strategy}", f"trainer.devices={devices}") == []


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["strategy.name=zero"], "strategy.name=zero: unknown; choose one of single, ddp, fsdp, deepspeed"),
        (["trainer.devices=2"], "set strategy=ddp or trainer.devices=1"),
        (["strategy=ddp", "strategy.backend=nccl"], "set strategy.backend=gloo"),
        (["strategy=ddp_cpu", "strategy.find_unused_parameters=false"], "DDP would hang"),
        (["strategy=fsdp_cpu", "strategy.find_unused_parameters=true"], "only ddp reads it"),
        (["strategy=ddp_cpu", "strategy.cpu_offload=true"], "ddp cannot offload"),
        (["strategy=ddp_cpu", "strategy.gather_dtype=bfloat16"], "only fsdp reads it"),
        (["strategy=fsdp_cpu", "strategy.gather_dtype=bfloat16", "trainer.precision=32-true"], "computes in float32"),
        (["strategy=ddp_cpu", "callbacks.checkpoint.layout=sharded"], "ddp writes one file; set strategy=fsdp"),
        (["callbacks.checkpoint.layout=tar"], "choose one of consolidated, sharded"),
        (["strategy.timeout_seconds=0"], "must be positive"),
        (["trainer.compile_backend=xla"], "unknown; choose one of inductor, aot_eager, eager"),
        (["trainer.compile=true", "strategy=deepspeed_cpu"], "do not fit compiled blocks; set strategy=fsdp or ddp"),
        (["trainer.profile=true", "trainer.max_steps=5"], "traces steps up to 6 of 5; set trainer.max_steps=6"),
        (["strategy=deepspeed_zero3_offload"], "set strategy=deepspeed_cpu"),
        (["strategy=deepspeed_zero3", "peft=dora_r16"], "adapters are not written from ZeRO-3's slices"),
        (["strategy=deepspeed_zero2", "strategy.zero_stage=4"], "choose 1, 2 or 3"),
    ],
)
def test_what_does_not_combine_is_named_with_a_remedy(overrides: list[str], expected: str) -> None:
    found = problems(*overrides)
    assert any(expected in line for line in found), found
    assert all("\n" not in line for line in found)


def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert any("needs a C++ compiler (g++ or clang++)" in line for line in problems("trainer.compile=true"))
    assert problems("trainer.compile=true", "trainer.compile_backend=aot_eager") == []


def test_built_strategies_carry_their_settings() -> None:
    common = ["trainer.accelerator=cpu", "trainer.devices=2", "strategy.timeout_seconds=7"]
    fsdp = built("strategy=fsdp_cpu", "trainer.precision=bf16-mixed", *common)
    assert isinstance(fsdp, ShardedStrategy)
    assert fsdp.settings.gather_dtype == torch.bfloat16
    assert fsdp.settings.reduce_dtype == torch.float32
    assert (fsdp._data_parallel_size, fsdp._tensor_parallel_size) == (2, 1)
    ddp = built("strategy=ddp_cpu", *common)
    assert isinstance(ddp, ReplicatedStrategy)
    for strategy in (fsdp, ddp):
        assert strategy._timeout == timedelta(seconds=group_timeout(7))
    assert isinstance(built(), SingleProcessStrategy)


def test_deepspeed_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"not installed; pip install 'sm-diffusion\[scale\]'"):
        built("strategy=deepspeed_zero2")
