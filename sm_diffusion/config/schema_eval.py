"""Settings of eval.py."""

from __future__ import annotations

from dataclasses import dataclass, field

from sm_diffusion.registry import MISSING, register


@dataclass
class EvaluatorConfig:
    name: str = MISSING


@register("evaluator", "perplexity")
@dataclass
class PerplexityConfig(EvaluatorConfig):
    """Validation perplexity: the ELBO's token-weighted mean at a fixed seed."""

    name: str = "perplexity"
    feedback: bool | None = None  # two passes; null: as the variant validates
    max_sequences: int | None = None  # null: all
    repeats: int = 1  # independent noise seeds whose mean is reported


@register("evaluator", "zero_shot")
@dataclass
class ZeroShotConfig(EvaluatorConfig):
    """Perplexity on several corpora in one run, with the checkpoint's tokenizer and length."""

    name: str = "zero_shot"
    sources: list[str] = MISSING  # names of data options (their validation part), or text files, folders and globs
    feedback: bool | None = None  # as for perplexity
    max_sequences: int | None = None  # of each source, evenly spread; null: all


@register("evaluator", "generative")
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
    mauve_seeds: list[int] = field(default_factory=lambda: [25, 26, 27])  # of k-means; 25 is reported, else the mean
    mauve_references: int | None = None  # validation sequences; null: as many as samples
    mauve_scaling: float = 5.0
