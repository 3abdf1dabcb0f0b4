"""Settings of the network, the soft mask and the objective."""

from __future__ import annotations

from dataclasses import dataclass

from sm_diffusion.registry import MISSING, choice, register


@dataclass
class ModelConfig:
    """A denoiser; `name` is for people and tables."""

    name: str = MISSING
    attention: str = "auto"  # auto | sdpa | flash (needs flash-attn and CUDA)
    activation_checkpointing: bool = False  # recompute every block in the backward pass


@register("model", "dit")
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


@register("variant", "mdlm")
@dataclass
class MDLMVariantConfig(VariantConfig):
    name: str = "mdlm"


@register("variant", "soft_masked")
@dataclass
class SoftMaskedVariantConfig(VariantConfig):
    name: str = "soft_masked"
    p_sm: float = 0.8  # probability that a training step spends the extra first pass
    start_step: int = 0  # optimizer steps before this one are plain MDLM steps
    stop_step: int | None = None  # from this optimizer step on, too; null: never


@register("soft_mask", "soft_mask")
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
    mixing: str = choice("mixing", "linear")  # linear: the paper's; spherical keeps the norm
