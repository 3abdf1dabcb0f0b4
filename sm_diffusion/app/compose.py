"""Configurations composed and checked without running anything: for `smd config`, plans, sweeps and experiments."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from sm_diffusion.paths import ROOT


def composed(program: str, overrides: Sequence[str], *, checkpoint_exists: bool = True) -> dict[str, Any]:
    """The resolved and validated configuration as plain values."""
    from sm_diffusion.config.nodes import plain

    return plain(compose_and_validate(program, overrides, checkpoint_exists=checkpoint_exists))


def compose_and_validate(program: str, overrides: Sequence[str], *, checkpoint_exists: bool = True) -> Any:
    """The typed configuration (TrainConfig or EvalConfig); UserError lists all that is wrong.

    For train, what depends on the moment is left to train.py: whether this machine has the device, whether the
    checkpoint to start from exists yet, whether the run folder is free. checkpoint_exists: for eval, the checkpoint
    must be there.
    """
    from sm_diffusion.config.compose import compose_config

    config = compose_config(program, overrides)
    if program == "eval":
        check_eval(config if checkpoint_exists else dataclasses.replace(config, checkpoint=str(ROOT)))
    else:
        trainer = dataclasses.replace(config.trainer, accelerator=_any_device(config.trainer.accelerator))
        check_train(dataclasses.replace(config, trainer=trainer, init_from=None))
    return config


def check_train(config: Any) -> None:
    """UserError lists all that is wrong with a training, but for what its own folder holds when it starts."""
    from sm_diffusion.app.validate import validate_train

    validate_train(dataclasses.replace(config, ckpt_path=None, overwrite=True))


def check_eval(config: Any) -> None:
    """UserError lists all that is wrong with an evaluation, but for what its own folder holds when it starts."""
    from sm_diffusion.app.validate import validate_eval

    validate_eval(dataclasses.replace(config, overwrite=True))


def _any_device(accelerator: str) -> str:
    return "auto" if accelerator == "cuda" else accelerator
