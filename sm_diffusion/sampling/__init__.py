"""Sampling: one loop, many policies."""

from __future__ import annotations

from collections.abc import Mapping

from sm_diffusion.sampling.cache import CacheScope, DualCache, PrefixCache
from sm_diffusion.sampling.canvas import Canvas, blank, from_prompts, from_rows
from sm_diffusion.sampling.categorical import MEASURES, TokenSampling
from sm_diffusion.sampling.loop import Sampler, SamplerOutput
from sm_diffusion.sampling.noise import Noise, RowNoise
from sm_diffusion.sampling.orders.ancestral import Ancestral, FirstHitting
from sm_diffusion.sampling.orders.base import UnmaskPolicy
from sm_diffusion.sampling.orders.blockwise import Blockwise
from sm_diffusion.sampling.orders.confidence import ConfidenceOrder, Origin, RandomOrder, Threshold, Timetable
from sm_diffusion.sampling.orders.remdm import RemdmCap, RemdmConf, RemdmLoop, RemdmRescale
from sm_diffusion.types import UserError

POLICIES: Mapping[str, type[UnmaskPolicy]] = {
    "ancestral": Ancestral,
    "remdm_cap": RemdmCap,
    "remdm_rescale": RemdmRescale,
    "remdm_conf": RemdmConf,
    "remdm_loop": RemdmLoop,
    "first_hitting": FirstHitting,
    "confidence": ConfidenceOrder,
    "random": RandomOrder,
    "origin": Origin,
}


def policy_class(name: str) -> type[UnmaskPolicy]:
    """The policy of that name; UserError lists the choices."""
    if name not in POLICIES:
        raise UserError(f"sampler.policy={name}: unknown policy, choose one of {', '.join(POLICIES)}")
    return POLICIES[name]


__all__ = [
    "MEASURES",
    "POLICIES",
    "Ancestral",
    "Blockwise",
    "CacheScope",
    "Canvas",
    "ConfidenceOrder",
    "DualCache",
    "FirstHitting",
    "Noise",
    "Origin",
    "PrefixCache",
    "RandomOrder",
    "RemdmCap",
    "RemdmConf",
    "RemdmLoop",
    "RemdmRescale",
    "RowNoise",
    "Sampler",
    "SamplerOutput",
    "Threshold",
    "Timetable",
    "TokenSampling",
    "UnmaskPolicy",
    "blank",
    "from_prompts",
    "from_rows",
    "policy_class",
]
