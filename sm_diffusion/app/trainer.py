"""Builds the Lightning trainer: strategy, loggers, callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import Strategy

from sm_diffusion.config.nodes import plain
from sm_diffusion.config.root import TrainConfig
from sm_diffusion.training.callbacks.averaging import EMACallback
from sm_diffusion.training.callbacks.begin import BeginRun
from sm_diffusion.training.callbacks.compute_budget import ComputeBudget
from sm_diffusion.training.callbacks.final_checkpoint import FinalState
from sm_diffusion.training.callbacks.nonfinite import NonFiniteGuard
from sm_diffusion.training.callbacks.preemption import Preemption
from sm_diffusion.training.callbacks.profiling import Profile
from sm_diffusion.training.callbacks.progress import ProgressLine
from sm_diffusion.training.callbacks.settings import CheckpointSettings, RunContext
from sm_diffusion.training.callbacks.training_log import TrainingLog
from sm_diffusion.training.callbacks.validation import ValidationMetrics
from sm_diffusion.training.checkpoints.writer import Writer
from sm_diffusion.training.run_folder import RunFolder
from sm_diffusion.training.strategies.saving import SafeCheckpointIO
from sm_diffusion.training.strategies.settings import StrategyContext
from sm_diffusion.training.trainer_settings import SKIPPED_STEPS, TRACED_STEPS, accelerator_of, precision_of
from sm_diffusion.training.watchdog.watchdog import Watchdog


def build_strategy(config: TrainConfig, writer: Writer) -> Strategy:
    """The strategy the configuration names. UserError when its package is not installed."""
    trainer = config.trainer
    accelerator = accelerator_of(trainer.accelerator)
    return config.strategy.build(
        StrategyContext(
            accelerator=accelerator,
            mixed=precision_of(trainer.precision, accelerator) == "bf16-mixed",
            num_processes=trainer.devices * trainer.num_nodes,
            feeds_back=config.variant.feeds_back,
            layout=config.callbacks.checkpoint.layout,
            writer=writer,
        )
    )


def build_checkpoints(settings: CheckpointSettings, folder: Path) -> list[Callback]:
    """`last.ckpt` every so many steps, `best-*.ckpt` by validation NLL, and optionally every periodic one."""
    shared: dict[str, Any] = {"dirpath": folder, "auto_insert_metric_name": False, "save_on_train_epoch_end": False}
    periodic: dict[str, Any] = {"every_n_train_steps": settings.every_steps, **shared}
    periodic["enable_version_counter"] = False
    # One callback for both: Lightning tells the states of two apart by their period only.
    kept: dict[str, Any] = {"filename": "last"}
    if settings.keep_every:
        kept = {"filename": "step-{step}", "save_top_k": -1, "save_last": True}
    callbacks: list[Callback] = [ModelCheckpoint(**kept, **periodic)]
    if settings.keep_best:
        callbacks.append(
            ModelCheckpoint(
                filename="best-{step}",
                monitor="val/nll",
                mode="min",
                save_top_k=settings.keep_best,
                enable_version_counter=False,
                **shared,
            )
        )
    return callbacks


class Watchers(NamedTuple):
    """The callbacks of a run: all, and those that its results are read from."""

    every: list[Callback]
    budget: ComputeBudget
    metrics: ValidationMetrics
    watchdog: Watchdog
    final: FinalState


def build_callbacks(config: TrainConfig, context: RunContext, writer: Writer, *, bytes_per_token: float) -> Watchers:
    """Everything that happens beside the steps, in the order in which Lightning calls it."""
    settings, wanted = config.trainer, config.callbacks
    folder = RunFolder(context.folder)
    budget = ComputeBudget(
        global_batch_sequences=config.data.global_batch_sequences,
        length=config.data.length,
        max_flops=settings.max_flops,
    )
    log = TrainingLog(budget=budget, log_every_steps=settings.log_every_steps)
    metrics = ValidationMetrics(bytes_per_token=bytes_per_token)
    final = FinalState(checkpoint=folder.last, writer=writer)
    watchdog = Watchdog(
        folder=folder.heartbeat, checkpoint=folder.last, timeout_seconds=config.strategy.timeout_seconds
    )
    every: list[Callback] = [
        *([EMACallback(decay=wanted.ema.decay, scope=wanted.ema.scope)] if wanted.ema.enabled else []),
        watchdog,
        NonFiniteGuard(checkpoint_dir=folder.checkpoints, check_every_steps=settings.log_every_steps),
        budget,
        log,
        metrics,
        ProgressLine(name=config.name, training_log=log, metrics=metrics, every_seconds=wanted.progress_seconds),
    ]
    if settings.profile:
        every.append(Profile(folder=folder.profile, skipped_steps=SKIPPED_STEPS, traced_steps=TRACED_STEPS))
    every += [
        final,
        Preemption(checkpoint=folder.last, writer=writer),  # behind the one that saves at the end
        *build_checkpoints(wanted.checkpoint, folder.checkpoints),
        *(extra.build(context) for extra in wanted.extra.values()),
    ]
    return Watchers(every, budget, metrics, watchdog, final)


class Built(NamedTuple):
    """The trainer and its callbacks."""

    trainer: L.Trainer
    watchers: Watchers


def build_trainer(config: TrainConfig, *, bytes_per_token: float, run_id: str, begin: BeginRun) -> Built:
    """A trainer whose global batch is `data.global_batch_sequences` on any number of processes.

    run_id: of the run, for loggers.   begin: is called before every other callback that writes.
    """
    folder, settings = Path(config.output_dir), config.trainer
    context = RunContext(name=config.name, folder=folder, run_id=run_id, config=plain(config))
    accelerator = accelerator_of(settings.accelerator)
    world_size = settings.devices * settings.num_nodes
    per_rank = config.data.global_batch_sequences // world_size
    accumulate = per_rank // config.data.micro_batch(world_size)
    writer = Writer(background=config.callbacks.checkpoint.async_save)
    watchers = build_callbacks(config, context, writer, bytes_per_token=bytes_per_token)
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=build_strategy(config, writer),
        precision=precision_of(settings.precision, accelerator),  # type: ignore[arg-type]
        max_steps=settings.max_steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=config.optim.clip_norm or None,
        val_check_interval=(settings.val_every_steps or settings.max_steps + 1) * accumulate,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=settings.log_every_steps,
        deterministic=settings.deterministic,
        logger=config.logger.build(context),
        callbacks=[begin, *watchers.every],
        plugins=[SafeCheckpointIO(writer)] if config.strategy.name in ("single", "ddp") else None,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    return Built(trainer, watchers)
