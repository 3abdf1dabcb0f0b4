"""From a validated configuration to objects. The only place that knows which class a name stands for."""

from __future__ import annotations

from typing import Any

from sm_diffusion.app.build_hf import build_hf_denoiser, with_adapter
from sm_diffusion.config.compose import provenance
from sm_diffusion.config.root import TrainConfig
from sm_diffusion.config.schema_model import (
    DiTConfig,
    MDLMVariantConfig,
    ModelConfig,
    SoftMaskConfig,
    SoftMaskedVariantConfig,
)
from sm_diffusion.config.schema_peft import ChatConfig, HFConfig
from sm_diffusion.data.chat.rows import longest_row
from sm_diffusion.denoisers.dit.model import DiT, DiTShape
from sm_diffusion.diffusion.contracts import Denoiser, Mixing
from sm_diffusion.diffusion.objective import Objective
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.soft_mask import FullVocabularySoftMask, SoftMask, SoftMaskBase
from sm_diffusion.registry import find
from sm_diffusion.training.feedback_window import StepWindow
from sm_diffusion.training.module import DiffusionModule, NoiseSettings
from sm_diffusion.training.optim import OptimSettings
from sm_diffusion.training.variants import MDLMModule, SoftMaskedModule
from sm_diffusion.types import UserError

# Validation during fit and eval.py draw the same noise, so they print the same number.
EVALUATION_SEED = 1


def build_objective(config: TrainConfig, *, mask_id: int) -> Objective:
    objective: Objective = config.objective.build(schedule=config.schedule, mask_id=mask_id)
    return objective


def dit_shape(model: DiTConfig, vocab_size: int) -> DiTShape:
    return DiTShape(
        vocab_size=vocab_size,
        width=model.width,
        num_blocks=model.num_blocks,
        num_heads=model.num_heads,
        cond_width=model.cond_width,
    )


def build_denoiser(model: ModelConfig, *, vocab_size: int, mask_id: int) -> Denoiser:
    match model:
        case DiTConfig():
            return DiT(
                dit_shape(model, vocab_size),
                parameterization=Subs(mask_id),
                dropout=model.dropout,
                time_conditioning=model.time_conditioning,
                attention=model.attention,
                checkpoint_blocks=model.activation_checkpointing,
            )
        case HFConfig():
            return build_hf_denoiser(model, vocab_size=vocab_size, mask_id=mask_id)
        case _:
            raise UserError(f"model={model.name}: no denoiser for {type(model).__name__}; see smd config --groups")


def build_mixing(name: str) -> Mixing:
    mixing: Mixing = find("mixing", name, key="soft_mask.mixing")
    return mixing


def build_soft_mask(soft: SoftMaskConfig) -> SoftMaskBase:
    omegas = {"omega_s": soft.omega_s, "omega_a": soft.omega_a, "omega_b": soft.omega_b}
    if soft.full_vocabulary:
        return FullVocabularySoftMask(temperature=soft.temperature, learnable=soft.learnable, **omegas)
    return SoftMask(top_k=soft.top_k, learnable=soft.learnable, **omegas)


def build_predictor(config: TrainConfig, *, vocab_size: int, mask_id: int) -> Predictor:
    """The network and, for the soft-masked variant, its omegas, freshly initialised."""
    denoiser = build_denoiser(config.model, vocab_size=vocab_size, mask_id=mask_id)
    denoiser = with_adapter(denoiser, config.peft, seed=config.seed)
    match config.variant:
        case MDLMVariantConfig():
            return HardMaskPredictor(denoiser, mask_id=mask_id)
        case SoftMaskedVariantConfig():
            soft_mask = build_soft_mask(config.soft_mask)
            mixing_ = build_mixing(config.soft_mask.mixing)
            return SoftMaskPredictor(denoiser, soft_mask, mask_id=mask_id, mixing=mixing_)
        case other:
            raise UserError(f"variant={other.name}: choose mdlm or soft_masked")


def build_optim(config: TrainConfig) -> OptimSettings:
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


def build_window(variant: SoftMaskedVariantConfig) -> StepWindow:
    """The optimizer steps that may spend the extra pass."""
    return StepWindow(variant.start_step, variant.stop_step)


def extra_pass_share(config: TrainConfig) -> float:
    """Expected extra first passes a training step, in [0, 1]: p_sm times the share of steps inside the window."""
    if not isinstance(config.variant, SoftMaskedVariantConfig):
        return 0.0
    return config.variant.p_sm * build_window(config.variant).share(config.trainer.max_steps)


def build_module(
    config: TrainConfig, predictor: Predictor, *, validation_sequences: int
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
            row_width=longest_row(config.data.length) if isinstance(config.data, ChatConfig) else None,
        ),
        "provenance": provenance(config),
    }
    if isinstance(config.variant, SoftMaskedVariantConfig):
        assert isinstance(predictor, SoftMaskPredictor)
        window = build_window(config.variant)
        return SoftMaskedModule(predictor=predictor, p_sm=config.variant.p_sm, window=window, **shared)
    return MDLMModule(predictor=predictor, **shared)
