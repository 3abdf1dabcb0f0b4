"""Every setting of the program, its type, its default and its unit. YAML files hold values only.

A default lives here and nowhere else. `MISSING` fields must be given by a YAML file or on the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

# ---------------------------------------------------------------------------------------------------------- model


@dataclass
class ModelConfig:
    """A denoiser; `name` is for people and tables."""

    name: str = MISSING
    attention: str = "auto"  # auto | sdpa | flash (needs flash-attn and CUDA)
    activation_checkpointing: bool = False  # recompute every block in the backward pass


@dataclass
class DiTConfig(ModelConfig):
    """The diffusion transformer of MDLM."""

    width: int = MISSING  # residual stream, a multiple of 2 * num_heads
    num_blocks: int = MISSING
    num_heads: int = MISSING
    cond_width: int = 128  # width of the time embedding
    dropout: float = 0.1  # probability, on the residual branches
    time_conditioning: bool = False  # tell the network the noise level; off as published


# -------------------------------------------------------------------------------------------- variant and soft mask


@dataclass
class VariantConfig:
    """What happens to the prediction of a position that stays masked."""

    name: str = MISSING  # mdlm: thrown away | soft_masked: fed back


@dataclass
class MDLMVariantConfig(VariantConfig):
    name: str = "mdlm"


@dataclass
class SoftMaskedVariantConfig(VariantConfig):
    name: str = "soft_masked"
    p_sm: float = 0.8  # probability that a training step spends the extra first pass


@dataclass
class SoftMaskConfig:
    """lambda(p) = omega_s * sigmoid(omega_a * (-H(p) - omega_b)), H in nats. Values are where training starts."""

    omega_s: float = 0.0  # in [0, 1]; 0 starts at 1e-6, as published
    omega_a: float = 6.66  # >= 0
    omega_b: float = -0.75  # <= 0, nats
    learnable: bool = True
    top_k: int = 3  # tokens that are blended, 1 <= top_k < vocabulary
    full_vocabulary: bool = False  # blend the whole vocabulary with a learnable temperature instead of the top-k
    temperature: float = 1.0  # > 0; used with full_vocabulary only
    mixing: str = "linear"  # linear (paper) | spherical (keeps the norm)


# ------------------------------------------------------------------------------------------- objective and schedule


@dataclass
class ScheduleConfig:
    name: str = "log_linear"  # log_linear | linear | cosine
    eps: float = 1e-3  # what stays clean at t = 1 (log_linear, cosine)


@dataclass
class ObjectiveConfig:
    name: str = "mdlm"
    times: str = "stratified"  # stratified over the global batch | uniform
    t_min: float = 1e-3  # diffusion time, in [0, t_max)
    t_max: float = 1.0


# ----------------------------------------------------------------------------------------------------------- data


@dataclass
class TokenizerConfig:
    kind: str = MISSING  # char (a-z and space) | byte | bpe (trained on the corpus) | hub (folder or hub name)
    vocab_size: int = 4096  # bpe only; mask included, >= 258
    path: str = ""  # hub only
    mask: str = "auto"  # hub only: token (must have one) | auto (one is added where there is none)


@dataclass
class DataConfig:
    """Settings every corpus shares. Sizes are counted in sequences of `length` tokens."""

    name: str = MISSING
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    length: int = MISSING  # tokens a sequence
    global_batch_sequences: int = MISSING  # sequences an optimizer step, over all ranks and accumulation steps
    micro_batch_sequences: int | None = None  # sequences a forward pass and rank; null: global batch / ranks
    eval_batch_sequences: int = 64
    max_validation_sequences: int | None = None  # null: all
    num_workers: int = 0  # loader processes a rank
    cache_dir: str = "cache"  # tokenised corpora


@dataclass
class PythonCorpusConfig(DataConfig):
    """The running interpreter's standard library: its code, or the English in its docstrings and manual."""

    kind: str = MISSING  # code | text
    validation_fraction: float = 0.05  # share of documents, in (0, 1)


@dataclass
class TextFilesConfig(DataConfig):
    """A folder, file or glob of .txt, .jsonl, .parquet or .py files."""

    paths: list[str] = MISSING
    validation_paths: list[str] = field(default_factory=list)  # empty: a share of the documents of `paths`
    validation_fraction: float = 0.05
    text_field: str = "text"  # field or column of .jsonl and .parquet
    split_on_blank_lines: bool = False  # a .txt file is one document, or one a paragraph


# ----------------------------------------------------------------------------------------------- optimiser, EMA


@dataclass
class OptimConfig:
    name: str = "adamw"
    lr: float = 3e-4  # network
    omega_lr: float = 1e-2  # omegas
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    eps: float = 1e-8
    weight_decay: float = 0.0  # network only
    warmup_steps: int = 2500  # linear
    decay: str = "constant"  # constant | cosine (to min_lr_ratio at trainer.max_steps)
    min_lr_ratio: float = 0.0
    clip_norm: float = 1.0  # global gradient norm; 0: no clipping


@dataclass
class EMAConfig:
    enabled: bool = True
    decay: float = 0.9999  # per step, in [0, 1); ramps up as (1 + n) / (10 + n)
    scope: str = "network"  # network (as published) | all (omegas too)


@dataclass
class CheckpointConfig:
    every_steps: int = 1000
    keep_every: bool = False  # keep each periodic checkpoint, not only the newest
    keep_best: int = 1  # by validation NLL


@dataclass
class CallbacksConfig:
    ema: EMAConfig = field(default_factory=EMAConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    progress_seconds: float = 10.0  # between progress lines where the output is not a terminal
    plots: bool = True  # loss and lambda(entropy) as PNG at the end


# ------------------------------------------------------------------------------------- trainer, strategy, logger


@dataclass
class TrainerConfig:
    max_steps: int = MISSING  # optimizer steps
    max_flops: float | None = None  # training FLOPs that end a run early; null: none
    val_every_steps: int = 1000  # optimizer steps; 0: only at the end
    log_every_steps: int = 50
    precision: str = "auto"  # auto (bf16-mixed on CUDA, 32-true elsewhere) | 32-true | bf16-mixed
    accelerator: str = "auto"  # auto | cpu | cuda
    devices: int = 1  # processes a node
    num_nodes: int = 1
    deterministic: bool = False
    threads: int | None = None  # CPU threads; null: torch's choice


@dataclass
class StrategyConfig:
    name: str = "single"  # single | ddp
    backend: str = "auto"  # auto | gloo | nccl
    find_unused_parameters: bool | None = None  # ddp; null: what the variant needs
    timeout_seconds: float = 1800.0  # a collective that takes longer ends the job


@dataclass
class LoggerConfig:
    csv: bool = True
    wandb: str = "disabled"  # disabled | offline | online
    project: str = "sm_diffusion"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)


# ------------------------------------------------------------------------------------------------- train and eval


@dataclass
class TrainConfig:
    name: str = MISSING  # of the run; its folder is output_dir
    output_dir: str = MISSING
    seed: int = 1
    init_from: str | None = None  # checkpoint whose weights start this run (ours, or a published MDLM/SM one)
    init_weights: str = "raw"  # raw | ema
    ckpt_path: str | None = None  # null: a new run | last: continue output_dir | a checkpoint of this run
    overwrite: bool = False  # delete what output_dir holds from an earlier run of this name
    model: ModelConfig = MISSING
    variant: VariantConfig = MISSING
    soft_mask: SoftMaskConfig = field(default_factory=SoftMaskConfig)
    data: DataConfig = MISSING
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)


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
