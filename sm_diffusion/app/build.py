"""From a validated configuration to objects. The only place that knows which class a name stands for."""

from __future__ import annotations

from typing import Any

from sm_diffusion.config.compose import provenance
from sm_diffusion.config.root import TrainConfig
from sm_diffusion.denoisers.adapters.state import with_adapter
from sm_diffusion.diffusion.objective import Objective
from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.training.module import DiffusionModule, NoiseSettings

# Validation during fit and eval.py draw the same noise, so they print the same number.
EVALUATION_SEED = 1


def build_objective(config: TrainConfig, *, mask_id: int) -> Objective:
    objective: Objective = config.objective.build(schedule=config.schedule, mask_id=mask_id)
    return objective


def build_predictor(config: TrainConfig, *, vocab_size: int, mask_id: int) -> Predictor:
    """The network and, for the soft-masked variant, its omegas, freshly initialised."""
    denoiser = config.model.build(vocab_size=vocab_size, mask_id=mask_id)
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
            row_width=config.data.row_width,
        ),
        "provenance": provenance(config),
    }
    return config.variant.build_module(predictor, **shared)
