"""Every setting of the program, its type, its default and its unit. YAML files hold values only.

A default lives in one of the `schema_*` modules and nowhere else. `MISSING` fields must be given by a YAML file or on
the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from sm_diffusion.config.schema_chat_mix import (
    ChatMixConfig as ChatMixConfig,
)
from sm_diffusion.config.schema_data import (
    DataConfig as DataConfig,
)
from sm_diffusion.config.schema_data import (
    FileCorpusConfig as FileCorpusConfig,
)
from sm_diffusion.config.schema_data import (
    MixtureConfig as MixtureConfig,
)
from sm_diffusion.config.schema_data import (
    PythonCorpusConfig as PythonCorpusConfig,
)
from sm_diffusion.config.schema_data import (
    TextFilesConfig as TextFilesConfig,
)
from sm_diffusion.config.schema_data import (
    TokenizerConfig as TokenizerConfig,
)
from sm_diffusion.config.schema_eval import (
    EvalConfig as EvalConfig,
)
from sm_diffusion.config.schema_eval import (
    EvaluatorConfig as EvaluatorConfig,
)
from sm_diffusion.config.schema_eval import (
    GenerativeConfig as GenerativeConfig,
)
from sm_diffusion.config.schema_eval import (
    PerplexityConfig as PerplexityConfig,
)
from sm_diffusion.config.schema_eval import (
    ZeroShotConfig as ZeroShotConfig,
)
from sm_diffusion.config.schema_model import (
    DiTConfig as DiTConfig,
)
from sm_diffusion.config.schema_model import (
    MDLMVariantConfig as MDLMVariantConfig,
)
from sm_diffusion.config.schema_model import (
    ModelConfig as ModelConfig,
)
from sm_diffusion.config.schema_model import (
    ObjectiveConfig as ObjectiveConfig,
)
from sm_diffusion.config.schema_model import (
    ScheduleConfig as ScheduleConfig,
)
from sm_diffusion.config.schema_model import (
    SoftMaskConfig as SoftMaskConfig,
)
from sm_diffusion.config.schema_model import (
    SoftMaskedVariantConfig as SoftMaskedVariantConfig,
)
from sm_diffusion.config.schema_model import (
    VariantConfig as VariantConfig,
)
from sm_diffusion.config.schema_peft import (
    ChatConfig as ChatConfig,
)
from sm_diffusion.config.schema_peft import (
    ChatFilesConfig as ChatFilesConfig,
)
from sm_diffusion.config.schema_peft import (
    HFConfig as HFConfig,
)
from sm_diffusion.config.schema_peft import (
    HFShapeConfig as HFShapeConfig,
)
from sm_diffusion.config.schema_peft import (
    PeftConfig as PeftConfig,
)
from sm_diffusion.config.schema_peft import (
    PythonChatConfig as PythonChatConfig,
)
from sm_diffusion.config.schema_run import (
    CallbacksConfig as CallbacksConfig,
)
from sm_diffusion.config.schema_run import (
    CheckpointConfig as CheckpointConfig,
)
from sm_diffusion.config.schema_run import (
    EMAConfig as EMAConfig,
)
from sm_diffusion.config.schema_run import (
    LoggerConfig as LoggerConfig,
)
from sm_diffusion.config.schema_run import (
    OptimConfig as OptimConfig,
)
from sm_diffusion.config.schema_run import (
    StrategyConfig as StrategyConfig,
)
from sm_diffusion.config.schema_run import (
    TrainerConfig as TrainerConfig,
)


@dataclass
class TrainConfig:
    name: str = MISSING  # of the run; its folder is output_dir
    output_dir: str = MISSING
    seed: int = 1
    init_from: str | None = None  # checkpoint whose weights start this run (ours, or a published MDLM/SM one)
    init_weights: str = "raw"  # raw | ema
    ckpt_path: str | None = None  # null: new run | last: continue output_dir | auto: last if any | a checkpoint of it
    overwrite: bool = False  # delete what output_dir holds from an earlier run of this name
    model: ModelConfig = MISSING
    variant: VariantConfig = MISSING
    soft_mask: SoftMaskConfig = field(default_factory=SoftMaskConfig)
    peft: PeftConfig = field(default_factory=PeftConfig)
    data: DataConfig = MISSING
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)


