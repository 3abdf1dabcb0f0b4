"""From a validated configuration to objects. The only place that knows which class a name stands for."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from sm_diffusion.app.build_hf import build_hf_denoiser, with_adapter
from sm_diffusion.config import schema
from sm_diffusion.data.chat.rows import longest_row
from sm_diffusion.denoisers.dit.model import DiT, DiTShape
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.contracts import Denoiser, Mixing
from sm_diffusion.diffusion.objective import MDLMObjective, Objective
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.schedule import (
    Cosine,
    Linear,
    LogLinear,
    NoiseSchedule,
    StratifiedTimes,
    TimeSampler,
    UniformTimes,
)
from sm_diffusion.diffusion.sft import FirstRowTime, SFTObjective
from sm_diffusion.diffusion.soft_mask import FullVocabularySoftMask, SoftMask, SoftMaskBase
from sm_diffusion.training.feedback_window import StepWindow
from sm_diffusion.training.module import DiffusionModule, NoiseSettings
from sm_diffusion.training.optim import OptimSettings
from sm_diffusion.training.variants import MDLMModule, SoftMaskedModule
from sm_diffusion.types import UserError

# Validation during fit and eval.py draw the same noise, so they print the same number.
EVALUATION_SEED = 1


def build_schedule(schedule: schema.ScheduleConfig) -> NoiseSchedule:
    match schedule.name:
        case "log_linear":
            return LogLinear(eps=schedule.eps)
        case "linear":
            return Linear()
        case "cosine":
            return Cosine(eps=schedule.eps)
        case name:
            raise UserError(f"schedule.name={name}: choose log_linear, linear or cosine")


def build_times(objective: schema.ObjectiveConfig) -> TimeSampler:
    match objective.times:
        case "stratified":
            return StratifiedTimes(t_min=objective.t_min, t_max=objective.t_max)
        case "uniform":
            return UniformTimes(t_min=objective.t_min, t_max=objective.t_max)
        case "first_row":
            return FirstRowTime(t_min=objective.t_min, t_max=objective.t_max)
        case name:
            raise UserError(f"objective.times={name}: choose stratified, uniform or first_row")


def build_objective(config: schema.TrainConfig, *, mask_id: int) -> Objective:
    match config.objective.name:
        case "mdlm":
            return MDLMObjective(
                schedule=build_schedule(config.schedule), times=build_times(config.objective), mask_id=mask_id
            )
        case "sft":
            return SFTObjective(times=build_times(config.objective), mask_id=mask_id)
        case name:
            raise UserError(f"objective.name={name}: choose mdlm or sft")


def dit_shape(model: schema.DiTConfig, vocab_size: int) -> DiTShape:
    return DiTShape(
        vocab_size=vocab_size,
        width=model.width,
        num_blocks=model.num_blocks,
        num_heads=model.num_heads,
        cond_width=model.cond_width,
    )


def build_denoiser(model: schema.ModelConfig, *, vocab_size: int, mask_id: int) -> Denoiser:
    match model:
        case schema.DiTConfig():
            return DiT(
                dit_shape(model, vocab_size),
                parameterization=Subs(mask_id),
                dropout=model.dropout,
                time_conditioning=model.time_conditioning,
                attention=model.attention,
                checkpoint_blocks=model.activation_checkpointing,
            )
        case schema.HFConfig():
            return build_hf_denoiser(model, vocab_size=vocab_size, mask_id=mask_id)
        case _:
            raise UserError(f"model={model.name}: no denoiser for {type(model).__name__}; see smd config --groups")


def build_mixing(name: str) -> Mixing:
    match name:
        case "linear":
            return mixing.linear
        case "spherical":
            return mixing.spherical
        case _:
            raise UserError(f"soft_mask.mixing={name}: choose linear or spherical")


def build_soft_mask(soft: schema.SoftMaskConfig) -> SoftMaskBase:
    omegas = {"omega_s": soft.omega_s, "omega_a": soft.omega_a, "omega_b": soft.omega_b}
    if soft.full_vocabulary:
        return FullVocabularySoftMask(temperature=soft.temperature, learnable=soft.learnable, **omegas)
    return SoftMask(top_k=soft.top_k, learnable=soft.learnable, **omegas)


def build_predictor(config: schema.TrainConfig, *, vocab_size: int, mask_id: int) -> Predictor:
    """The network and, for the soft-masked variant, its omegas, freshly initialised."""
    denoiser = build_denoiser(config.model, vocab_size=vocab_size, mask_id=mask_id)
    denoiser = with_adapter(denoiser, config.peft, seed=config.seed)
    match config.variant:
        case schema.MDLMVariantConfig():
            return HardMaskPredictor(denoiser, mask_id=mask_id)
        case schema.SoftMaskedVariantConfig():
            soft_mask = build_soft_mask(config.soft_mask)
            mixing_ = build_mixing(config.soft_mask.mixing)
            return SoftMaskPredictor(denoiser, soft_mask, mask_id=mask_id, mixing=mixing_)
        case other:
            raise UserError(f"variant={other.name}: choose mdlm or soft_masked")


def build_optim(config: schema.TrainConfig) -> OptimSettings:
    optim = config.optim
    return OptimSettings(
        lr=optim.lr,
        omega_lr=optim.omega_lr,
        betas=(optim.betas[0], optim.betas[1]),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        warmup_steps=optim.warmup_steps,
        decay=optim.decay,
        min_lr_ratio=optim.min_lr_ratio,
        max_steps=config.trainer.max_steps,
    )


# Fields of TrainConfig whose class is chosen by a group.
POLYMORPHIC = ("model", "variant", "data")


def provenance(config: schema.TrainConfig) -> dict[str, Any]:
    """The configuration as plain values, with the class of every polymorphic field: what checkpoints carry."""
    return {"config": asdict(config), "types": {name: type(vars(config)[name]).__name__ for name in POLYMORPHIC}}


def build_window(variant: schema.SoftMaskedVariantConfig) -> StepWindow:
    """The optimizer steps that may spend the extra pass."""
    return StepWindow(variant.start_step, variant.stop_step)


def extra_pass_share(config: schema.TrainConfig) -> float:
    """Expected extra first passes a training step, in [0, 1]: p_sm times the share of steps inside the window."""
    if not isinstance(config.variant, schema.SoftMaskedVariantConfig):
        return 0.0
    return config.variant.p_sm * build_window(config.variant).share(config.trainer.max_steps)


def build_module(
    config: schema.TrainConfig, predictor: Predictor, *, validation_sequences: int
) -> DiffusionModule:
    """The LightningModule of the configured variant."""
    shared: dict[str, Any] = {
        "objective": build_objective(config, mask_id=predictor.mask_id),
        "optim": build_optim(config),
        "noise": NoiseSettings(
            seed=config.seed,
            evaluation_seed=EVALUATION_SEED,
            global_batch_sequences=config.data.global_batch_sequences,
            validation_sequences=validation_sequences,
            row_width=longest_row(config.data.length) if isinstance(config.data, schema.ChatConfig) else None,
        ),
        "provenance": provenance(config),
    }
    if isinstance(config.variant, schema.SoftMaskedVariantConfig):
        assert isinstance(predictor, SoftMaskPredictor)
        window = build_window(config.variant)
        return SoftMaskedModule(predictor=predictor, p_sm=config.variant.p_sm, window=window, **shared)
    return MDLMModule(predictor=predictor, **shared)
