"""From a validated configuration to objects. The only place that knows which class a name stands for."""

from __future__ import annotations

from typing import Any

from sm_diffusion.app.build_hf import build_hf_denoiser, with_adapter
from sm_diffusion.config.compose import provenance
from sm_diffusion.config.root import TrainConfig
from sm_diffusion.config.schema_model import DiTConfig, ModelConfig
from sm_diffusion.config.schema_peft import ChatConfig, HFConfig
from sm_diffusion.data.chat.rows import longest_row
from sm_diffusion.denoisers.dit.model import DiT, DiTShape
from sm_diffusion.diffusion.contracts import Denoiser
from sm_diffusion.diffusion.objective import Objective
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.training.module import DiffusionModule, NoiseSettings
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


def build_predictor(config: TrainConfig, *, vocab_size: int, mask_id: int) -> Predictor:
    """The network and, for the soft-masked variant, its omegas, freshly initialised."""
    denoiser = build_denoiser(config.model, vocab_size=vocab_size, mask_id=mask_id)
    denoiser = with_adapter(denoiser, config.peft, seed=config.seed)
    return config.variant.build_predictor(denoiser, config.soft_mask, mask_id=mask_id)


def build_module(
    config: TrainConfig, predictor: Predictor, *, validation_sequences: int
) -> DiffusionModule:
    """The LightningModule of the configured variant."""
    shared: dict[str, Any] = {
        "objective": build_objective(config, mask_id=predictor.mask_id),
        "optim": config.optim,
        "num_steps": config.trainer.max_steps,
        "noise": NoiseSettings(
            seed=config.seed,
            evaluation_seed=EVALUATION_SEED,
            global_batch_sequences=config.data.global_batch_sequences,
            validation_sequences=validation_sequences,
            row_width=longest_row(config.data.length) if isinstance(config.data, ChatConfig) else None,
        ),
        "provenance": provenance(config),
    }
    return config.variant.build_module(predictor, **shared)
