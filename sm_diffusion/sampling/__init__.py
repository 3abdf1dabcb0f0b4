"""Sampling: one loop, many policies."""

from __future__ import annotations

from sm_diffusion.sampling.cache import CacheScope, DualCache, PrefixCache
from sm_diffusion.sampling.canvas import Canvas, blank, from_prompts, from_rows
from sm_diffusion.sampling.categorical import TokenSampling
from sm_diffusion.sampling.loop import Sampler, SamplerOutput
from sm_diffusion.sampling.noise import Noise, RowNoise
from sm_diffusion.sampling.orders.ancestral import Ancestral, FirstHitting
from sm_diffusion.sampling.orders.base import UnmaskPolicy
from sm_diffusion.sampling.orders.blockwise import Blockwise
from sm_diffusion.sampling.orders.confidence import (
    ConfidenceOrder,
    Origin,
    RandomOrder,
    Threshold,
    Timetable,
    build_measure,
)
from sm_diffusion.sampling.orders.remdm import RemdmCap, RemdmConf, RemdmLoop, RemdmRescale
from sm_diffusion.sampling.settings import SamplerSettings

__all__ = [
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
    "SamplerSettings",
    "Threshold",
    "Timetable",
    "TokenSampling",
    "UnmaskPolicy",
    "blank",
    "build_measure",
    "from_prompts",
    "from_rows",
]
