"""Settings of eval.py."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from sm_diffusion.config.schema_data import DataConfig
from sm_diffusion.config.schema_model import ModelConfig, SoftMaskConfig
from sm_diffusion.config.schema_sampler import SamplerConfig


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
class ZeroShotConfig(EvaluatorConfig):
    """Perplexity on several corpora in one run, with the checkpoint's tokenizer and length."""

    name: str = "zero_shot"
    sources: list[str] = MISSING  # names of data options (their validation part), or text files, folders and globs
    feedback: bool | None = None  # as for perplexity
    max_sequences: int | None = None  # of each source, evenly spread; null: all


@dataclass
class GenerativeConfig(EvaluatorConfig):
    """Unconditional samples, made once into a cache, and what a judge and their statistics say of them."""

    name: str = "generative"
    num_samples: int = 64  # published: 5,000
    length: int | None = None  # tokens a sample; null: the model's length
    temperatures: list[float] = field(default_factory=list)  # gen-PPL/entropy frontier; empty: the sampler's own
    samples_dir: str | None = None  # folder of the samples; null: below the corpus cache, by content
    judge: str | None = "gpt2-large"  # hub name, folder or GGUF file of a causal LM; null: no generative perplexity
    judge_tokens: int = 1024  # tokens of a text that count
    judge_batch_sequences: int = 4
    mauve: bool = False  # needs the extra: pip install sm-diffusion[eval]
    mauve_features: str = "gpt2-large"  # as judge
    mauve_seeds: list[int] = field(default_factory=lambda: [25, 26, 27])  # of k-means; the mean is reported
    mauve_references: int | None = None  # validation sequences; null: as many as samples
    mauve_scaling: float = 5.0


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
    sampler: SamplerConfig = MISSING  # of evaluators that generate
    evaluator: EvaluatorConfig = MISSING
