"""Sharded parameters (torch FSDP2): how a predictor is split over processes, and how one rank sees its share.

Every block is a unit of its own, gathered when it runs; embedding, head and omegas form the root unit, because the
mixture, the readout and the soft mask read them inside the predictor's forward. The feedback pass runs without
gradient, so it gathers weights and reduces nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor, distribute_tensor

from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.training.strategies import zero_shards
from sm_diffusion.types import UserError


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """How a predictor is sharded.

    gather_dtype:        dtype the blocks' weights are gathered and computed in; None: as they are stored.
    reduce_dtype:        dtype gradients are summed over ranks in; None: as they come.
    reshard_after_forward: free a block's gathered weights after its forward and gather them again for the backward.
    hold_gradients:      between micro-batches keep whole gradients and send nothing; False: scatter after each.
    cpu_offload:         keep shards, gradients and optimiser states in host memory (slow; needs a GPU to be of use).
    """

    gather_dtype: torch.dtype | None = None
    reduce_dtype: torch.dtype | None = torch.float32
    reshard_after_forward: bool = True
    hold_gradients: bool = True
    cpu_offload: bool = False


def shard_predictor(predictor: Predictor, mesh: DeviceMesh, settings: ShardSettings) -> None:
    """Replace the parameters of `predictor` by shards over `mesh`, in place. Safe to call twice.

    Every rank must hold the same full weights beforehand: each keeps its own slice, nothing is sent.
    """
    if isinstance(predictor, FSDPModule):
        return
    offload = CPUOffloadPolicy(pin_memory=torch.cuda.is_available()) if settings.cpu_offload else OffloadPolicy()
    # Inputs are not cast: the residual stream stays float32, matrix products are cast by autocast.
    blocks = MixedPrecisionPolicy(
        param_dtype=settings.gather_dtype, reduce_dtype=settings.reduce_dtype, cast_forward_inputs=False
    )
    # The root stays in its own dtype: 8 bits of mantissa would round the omegas, which are read there.
    root = MixedPrecisionPolicy(reduce_dtype=settings.reduce_dtype, cast_forward_inputs=False)
    for unit in predictor.denoiser.shard_units():
        fully_shard(
            unit,
            mesh=mesh,
            mp_policy=blocks,
            offload_policy=offload,
            reshard_after_forward=settings.reshard_after_forward,
        )
    fully_shard(predictor, mesh=mesh, mp_policy=root, offload_policy=offload)


def reshard(module: nn.Module) -> None:
    """Give up every gathered weight: a forward without backward leaves the root's behind, which would go stale."""
    for child in module.modules():
        if isinstance(child, FSDPModule):
            child.reshard()


def local_part(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, sharing its memory; plain tensors are held whole."""
    if zero_shards.is_partitioned(tensor):
        return zero_shards.local_slice(tensor)
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor. A collective for shards: all ranks must call it, in the same order."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor`, sharded as `like` is. A full tensor is sliced locally: every rank must hold the same one."""
    if zero_shards.is_partitioned(like):
        return zero_shards.slice_of(tensor, like)
    if not isinstance(like, DTensor) or isinstance(tensor, DTensor):
        return tensor
    moved = tensor.to(device=local_part(like).device)
    return distribute_tensor(moved, like.device_mesh, like.placements, src_data_rank=None)


def place_model_state(module: nn.Module, state: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """Full or sharded tensors of a checkpoint, sharded as the module's own. UserError lists what does not fit."""
    own = module.state_dict()
    check_shapes(
        {name: tuple(value.shape) for name, value in own.items()},
        {name: tuple(value.shape) for name, value in state.items()},
        source=source,
    )
    return {name: placed_like(state[name], value) for name, value in own.items()}


def place_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimiser state whose tensors of a parameter's shape are sharded as that parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    placed = {
        index: {
            name: placed_like(value, parameters[index]).clone()
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in entry.items()
        }
        for index, entry in state["state"].items()
    }
    return {**state, "state": placed}


def check_shapes(
    own: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], *, source: str
) -> None:
    """UserError unless names and shapes agree."""
    problems = [f"{name} is missing" for name in own if name not in found]
    problems += [f"{name} is unexpected" for name in found if name not in own]
    problems += [
        f"{name} is {found[name]} there, {own[name]} here"
        for name in own
        if name in found and found[name] != own[name]
    ]
    if problems:
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise UserError(f"{source}: does not fit this configuration: " + "; ".join(problems[:6]) + more)
