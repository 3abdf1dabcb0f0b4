"""The adapter folder of a run: adapters and omegas gathered from wherever they are sharded."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from sm_diffusion.denoisers.adapters import peft
from sm_diffusion.denoisers.pretrained.hf import HFDenoiser
from sm_diffusion.diffusion.predictor import Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.soft_mask import SoftMaskBase
from sm_diffusion.training.strategies.sharding import reshard, whole


def write_adapter_folder(predictor: Predictor, folder: Path, *, writes: bool = True) -> Path | None:
    """Write the adapter and the omegas of a predictor that has any; None without an adapter, or under ZeRO-3, whose
    weights no rank holds (then `smd convert adapter` makes the folder from the checkpoint).

    writes: whether this process writes. Where parameters are sharded all must call: it gathers.
    """
    denoiser = predictor.denoiser
    if not isinstance(denoiser, HFDenoiser) or denoiser.adapter is None:
        return None
    reshard(predictor)
    named = denoiser.adapter.parameters()
    if any(parameter.numel() == 0 for parameter in named.values()):
        return None
    weights = {name: whole(parameter.detach()).cpu() for name, parameter in named.items()}
    soft_mask = _gathered(predictor.soft_mask) if isinstance(predictor, SoftMaskPredictor) else None
    if not writes:
        return None
    peft.save(denoiser.adapter, folder, soft_mask, weights=weights)
    return folder


def _gathered(soft_mask: SoftMaskBase) -> SoftMaskBase:
    """A copy with whole parameters on the CPU."""
    full = {
        id(parameter): torch.nn.Parameter(whole(parameter.detach()).cpu(), requires_grad=parameter.requires_grad)
        for parameter in soft_mask.parameters()
    }
    return copy.deepcopy(soft_mask, full)  # the memo: what to put in place of each parameter
