"""Settings of the network."""

from __future__ import annotations

from dataclasses import dataclass

from sm_diffusion.registry import MISSING, register


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
