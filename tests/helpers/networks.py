"""Tiny random predictors of every kind."""

from __future__ import annotations

import torch

from sm_diffusion.denoisers.dit.model import DiT, DiTShape
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.soft_mask import FullVocabularySoftMask, SoftMask

VOCAB, MASK = 40, 39


def make_predictor(kind: str, *, vocab_size: int = VOCAB, width: int = 16, scale: float = 0.4) -> Predictor:
    """A random network with visible weights: "mdlm", "sm" or "dense" (the full-vocabulary soft mask)."""
    torch.manual_seed(3)
    shape = DiTShape(vocab_size=vocab_size, width=width, num_blocks=1, num_heads=2, cond_width=4)
    model = DiT(shape, parameterization=Subs(vocab_size - 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(scale * torch.randn(parameter.shape))
    if kind == "mdlm":
        return HardMaskPredictor(model, mask_id=vocab_size - 1)
    omegas = {"omega_s": 0.8, "omega_a": 2.0, "omega_b": -1.0}
    soft = SoftMask(top_k=2, **omegas) if kind == "sm" else FullVocabularySoftMask(temperature=0.9, **omegas)
    return SoftMaskPredictor(model, soft, mask_id=vocab_size - 1, mixing=mixing.linear)
