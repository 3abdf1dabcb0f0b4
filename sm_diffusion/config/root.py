"""The roots of the configuration: what train.py, eval.py and `smd sample` are given.

Every field that a group chooses holds a component of the registry; its settings stand where the component is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sm_diffusion.data.settings import DataSettings
from sm_diffusion.denoisers.adapters.settings import AdapterSettings
from sm_diffusion.denoisers.settings import ModelSettings
from sm_diffusion.diffusion.soft_mask import SoftMaskSettings
from sm_diffusion.evaluation.base import EvaluatorSettings
from sm_diffusion.registry import MISSING, option
from sm_diffusion.sampling.settings import SamplerSettings
from sm_diffusion.training.callbacks.settings import CallbacksSettings
from sm_diffusion.training.loggers import LoggerSettings
from sm_diffusion.training.optim import OptimSettings
from sm_diffusion.training.strategies.settings import StrategySettings
from sm_diffusion.training.trainer_settings import TrainerSettings
from sm_diffusion.training.variant_settings import VariantSettings


@dataclass
class TrainConfig:
    """Settings of train.py."""

    name: str = MISSING  # of the run; its folder is output_dir
    output_dir: str = MISSING
    seed: int = 1
    init_from: str | None = None  # checkpoint whose weights start this run (ours, or a published MDLM/SM one)
    init_weights: str = "raw"  # raw | ema
    ckpt_path: str | None = None  # null: new run | last: continue output_dir | auto: last if any | a checkpoint of it
    overwrite: bool = False  # delete what output_dir holds from an earlier run of this name
    model: ModelSettings = option("model")
    variant: VariantSettings = option("variant")
    soft_mask: SoftMaskSettings = option("soft_mask")
    peft: AdapterSettings = option("peft", of="peft")
    data: DataSettings = option("data")
    schedule: Any = option("schedule")
    objective: Any = option("objective")
    optim: OptimSettings = option("optim")
    trainer: TrainerSettings = option("trainer")
    strategy: StrategySettings = option("strategy")
    logger: LoggerSettings = option("logger")
    callbacks: CallbacksSettings = option("callbacks")


@dataclass
class EvalConfig:
    """Settings of eval.py."""

    checkpoint: str = MISSING
    output_dir: str = MISSING
    overwrite: bool = False  # replace results of another checkpoint or evaluator in output_dir
    weights: str = "ema"  # ema | raw
    seed: int = 1  # of the evaluation noise; 1 is what validation during fit uses
    batch_sequences: int = 64
    accelerator: str = "auto"
    devices: int = 1
    precision: str = "auto"
    data: DataSettings | None = option("data", None)  # null: the corpus the checkpoint was trained on
    model: ModelSettings | None = option("model", None)  # for a published checkpoint, which does not say its heads
    soft_mask: SoftMaskSettings = option("soft_mask")  # top_k of a published checkpoint
    sampler: SamplerSettings = option("sampler")  # of evaluators that generate
    evaluator: EvaluatorSettings = option("evaluator")


@dataclass
class SampleConfig:
    """Settings of `smd sample` and of `Model.generate`."""

    sampler: SamplerSettings = option("sampler")
