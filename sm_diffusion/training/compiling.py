"""torch.compile of the blocks: all of a network but embedding, head and readout, whose shapes follow the masks."""

from __future__ import annotations

import torch

from sm_diffusion.diffusion.predictor import Predictor


def compile_blocks(predictor: Predictor, *, backend: str) -> int:
    """Compile the forward of every unit of `shard_units`, in place; how many. Names of weights do not change.

    The forward, not the module: hooks (FSDP2's gathering, say) stay outside of the graph, and blocks of one shape share
    a graph. Call it before a strategy wraps the predictor. Compiled dropout draws other random numbers than plain one.
    """
    units = predictor.denoiser.shard_units()
    for unit in units:
        unit.forward = torch.compile(unit.forward, backend=backend)
    return len(units)
