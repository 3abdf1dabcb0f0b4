"""Settings of eval.py."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from sm_diffusion.config.schema_data import DataConfig
from sm_diffusion.config.schema_model import ModelConfig, SoftMaskConfig


@dataclass
class EvaluatorConfig:
    name: str = MISSING


@dataclass
class PerplexityConfig(EvaluatorConfig):
    """Validation perplexity: the ELBO's token-weighted mean at a fixed seed."""

    name: str = "perplexity"
    feedback: bool | None = None  # two passes; null: as the variant validates
    max_sequences: int | None = None  # null: all
    repeats: int = 1  # independent noise seeds whose mean is reported


@dataclass
class EvalConfig:
    checkpoint: str = MISSING
    output_dir: str = MISSING
    weights: str = "ema"  # ema | raw
    seed: int = 1  # of the evaluation noise; 1 is what validation during fit uses
    batch_sequences: int = 64
    accelerator: str = "auto"
    devices: int = 1
    precision: str = "auto"
    data: DataConfig | None = None  # null: the corpus the checkpoint was trained on
    model: ModelConfig | None = None  # for a published checkpoint, which does not say its number of heads
    soft_mask: SoftMaskConfig = field(default_factory=SoftMaskConfig)  # top_k of a published checkpoint
    evaluator: EvaluatorConfig = MISSING
