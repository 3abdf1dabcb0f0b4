"""Builds the Lightning trainer: strategy, loggers, callbacks."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy

from sm_diffusion.config import schema
from sm_diffusion.config.build_data import micro_batch_sequences
from sm_diffusion.training.callbacks import ComputeMeter, EMACallback, NonFiniteGuard, ValidationMetrics
from sm_diffusion.training.progress import ProgressLine
from sm_diffusion.types import UserError


class Built(NamedTuple):
    """The trainer and the callbacks whose results the run reports."""

    trainer: L.Trainer
    meter: ComputeMeter
    metrics: ValidationMetrics


def accelerator_of(name: str) -> str:
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def precision_of(name: str, accelerator: str) -> str:
    return ("bf16-mixed" if accelerator == "cuda" else "32-true") if name == "auto" else name


def build_strategy(config: schema.TrainConfig) -> Strategy | str:
    strategy = config.strategy
    match strategy.name:
        case "single":
            return "auto"
        case "ddp":
            find_unused = strategy.find_unused_parameters
            if find_unused is None:
                find_unused = isinstance(config.variant, schema.SoftMaskedVariantConfig)
            on_cpu = accelerator_of(config.trainer.accelerator) == "cpu"
            backend = ("gloo" if on_cpu else "nccl") if strategy.backend == "auto" else strategy.backend
            return DDPStrategy(
                find_unused_parameters=find_unused,
                process_group_backend=backend,
                timeout=timedelta(seconds=strategy.timeout_seconds),
                gradient_as_bucket_view=True,
            )
        case name:
            raise UserError(f"strategy.name={name}: choose single or ddp")


def build_loggers(config: schema.TrainConfig, folder: Path) -> list[Logger]:
    loggers: list[Logger] = []
    if config.logger.csv:
        # A resumed run writes a new version_<k>: what earlier ones logged is kept.
        loggers.append(CSVLogger(folder, name="metrics", flush_logs_every_n_steps=1))
    if config.logger.wandb != "disabled":
        logger = config.logger
        loggers.append(
            WandbLogger(
                name=config.name,
                save_dir=str(folder),
                project=logger.project,
                entity=logger.entity,
                group=logger.group,
                tags=logger.tags,
                offline=logger.wandb == "offline",
                id=config.name.replace("/", "-"),
                resume="allow",
            )
        )
    return loggers


def build_checkpoints(settings: schema.CheckpointConfig, folder: Path) -> list[Callback]:
    """`last.ckpt` every so many steps, `best-*.ckpt` by validation NLL, and optionally every periodic one."""
    shared: dict[str, Any] = {"dirpath": folder, "auto_insert_metric_name": False, "save_on_train_epoch_end": False}
    periodic: dict[str, Any] = {"every_n_train_steps": settings.every_steps, **shared}
    callbacks: list[Callback] = [ModelCheckpoint(filename="last", enable_version_counter=False, **periodic)]
    if settings.keep_every:
        callbacks.append(ModelCheckpoint(filename="step-{step}", save_top_k=-1, **periodic))
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


def build_trainer(config: schema.TrainConfig, *, bytes_per_token: float) -> Built:
    """A trainer whose global batch is `data.global_batch_sequences` on any number of processes."""
    folder, settings = Path(config.output_dir), config.trainer
    accelerator = accelerator_of(settings.accelerator)
    world_size = settings.devices * settings.num_nodes
    per_rank = config.data.global_batch_sequences // world_size
    accumulate = per_rank // micro_batch_sequences(config.data, world_size)
    meter = ComputeMeter(
        global_batch_sequences=config.data.global_batch_sequences,
        length=config.data.length,
        max_flops=settings.max_flops,
        log_every_steps=settings.log_every_steps,
    )
    metrics = ValidationMetrics(bytes_per_token=bytes_per_token)
    checkpoints = folder / "checkpoints"
    callbacks: list[Callback] = [
        NonFiniteGuard(checkpoint_dir=checkpoints, check_every_steps=settings.log_every_steps),
        meter,
        metrics,
        ProgressLine(
            name=config.name, meter=meter, metrics=metrics, every_seconds=config.callbacks.progress_seconds
        ),
    ]
    if config.callbacks.ema.enabled:
        callbacks.insert(0, EMACallback(decay=config.callbacks.ema.decay, scope=config.callbacks.ema.scope))
    callbacks += build_checkpoints(config.callbacks.checkpoint, checkpoints)
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=settings.devices,
        num_nodes=settings.num_nodes,
        strategy=build_strategy(config),
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
        logger=build_loggers(config, folder),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    return Built(trainer, meter, metrics)
