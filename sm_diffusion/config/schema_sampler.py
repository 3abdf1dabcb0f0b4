"""Settings of samplers. Published values are in conf/sampler; times are diffusion times in (0, 1]."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class SamplerConfig:
    """How tokens are drawn and what is fed back, whatever the order in which positions are unmasked."""

    name: str = MISSING
    temperature: float = 1.0  # >= 0; 0: the most probable token
    top_p: float = 1.0  # nucleus, in (0, 1]
    top_k: int | None = None  # null: all tokens
    keep_crossing: bool = False  # the nucleus keeps the token that crosses top_p (Dream); false: it does not (MDLM)
    noise_removal: bool = True  # a last pass puts the most probable token where a mask is left
    strength: str = "constant"  # decode-time factor on omega_s: constant | linear | stepwise | window
    strength_levels: int = 4  # stepwise only
    strength_from: float = 1.0  # window only: the factor is 1 while strength_until < t <= strength_from, else 0
    strength_until: float = 0.0  # window only: diffusion time
    reuse_unchanged_batch: bool = False  # the authors' cache; ties a text to its batch, for reproducing their numbers
    block_length: int | None = None  # tokens of a block, filled left to right (num_steps: of each); null: no blocks
    cache: str = "none"  # keys and values kept between steps: none | prefix | dual (Fast-dLLM); needs block_length
    refresh_steps: int | None = None  # steps from one refresh of the cache to the next; null: once a block


@dataclass
class TimedSamplerConfig(SamplerConfig):
    """Samplers with a grid of times from 1 down to eps."""

    num_steps: int = 128
    eps: float = 1e-5  # last time of the grid


@dataclass
class AncestralConfig(TimedSamplerConfig):
    """MDLM."""

    name: str = "ancestral"


@dataclass
class RemdmCapConfig(TimedSamplerConfig):
    name: str = "remdm_cap"
    eta: float = 0.04  # largest probability of re-masking a token in a step


@dataclass
class RemdmRescaleConfig(TimedSamplerConfig):
    name: str = "remdm_rescale"
    eta: float = 0.015  # share of the largest possible re-masking probability


@dataclass
class RemdmConfConfig(TimedSamplerConfig):
    name: str = "remdm_conf"


@dataclass
class RemdmLoopConfig(TimedSamplerConfig):
    name: str = "remdm_loop"
    eta: float = 0.02
    t_on: float = 0.55  # the loop lasts from t_on down to t_off
    t_off: float = 0.05
    alpha_on: float = 0.9  # share of tokens during the loop


@dataclass
class FirstHittingConfig(SamplerConfig):
    name: str = "first_hitting"
    tokens_per_step: int = 1  # 1 is exact; more is faster


@dataclass
class ConfidenceConfig(TimedSamplerConfig):
    """Dream's orders: a timetable's number of tokens a step, the surest first."""

    name: str = "confidence"
    eps: float = 1e-3
    measure: str = "entropy"  # probability | margin | entropy
    alg_temp: float | None = None  # > 0 perturbs the order; null or 0: the surest


@dataclass
class ThresholdConfig(SamplerConfig):
    """As many tokens a step as are sure enough, and at least one."""

    name: str = "threshold"
    measure: str = "probability"
    value: float = 0.9  # in the measure's unit: probability or margin in [0, 1], negative entropy in nats (<= 0)


@dataclass
class RandomOrderConfig(TimedSamplerConfig):
    name: str = "random"
    eps: float = 1e-3


@dataclass
class OriginConfig(TimedSamplerConfig):
    name: str = "origin"
    eps: float = 1e-3


SAMPLERS: tuple[type[SamplerConfig], ...] = (
    AncestralConfig,
    RemdmCapConfig,
    RemdmRescaleConfig,
    RemdmConfConfig,
    RemdmLoopConfig,
    FirstHittingConfig,
    ConfidenceConfig,
    ThresholdConfig,
    RandomOrderConfig,
    OriginConfig,
)


@dataclass
class SampleConfig:
    """Root of `smd sample` and `Model.generate`."""

    sampler: SamplerConfig = MISSING
