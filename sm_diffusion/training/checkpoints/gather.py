"""Checkpoints in memory: trees of containers, numbers and tensors, whole or sharded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.tensor import DTensor

from sm_diffusion.training.strategies.sharding import whole


def gathered(tree: Any, *, keep: bool) -> Any:
    """The tree with full CPU tensors. A collective. keep=False: take part in the gathering, keep nothing."""

    def leaf(tensor: Tensor, _: str) -> Any:
        full = whole(tensor.detach())
        # Never the live memory: a writer may still read it when training has gone on.
        return full.to("cpu", copy=not isinstance(tensor, DTensor)) if keep else None

    return map_tensors(tree, leaf)


def map_tensors(tree: Any, change: Callable[[Tensor, str], Any], key: str = "") -> Any:
    """`tree` with every tensor replaced by change(tensor, key); key is its dotted place."""
    if isinstance(tree, Tensor):
        return change(tree, key)
    if isinstance(tree, dict):
        return {name: map_tensors(value, change, f"{key}.{name}" if key else str(name)) for name, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        items = [map_tensors(value, change, f"{key}.{index}") for index, value in enumerate(tree)]
        return items if isinstance(tree, list) else tuple(items)
    return tree


def snapshot(tree: Any) -> Any:
    """A copy of a checkpoint's tree in host memory; shards stay shards."""
    tensors: dict[str, Tensor] = {}

    def collect(tensor: Tensor, key: str) -> Any:
        tensors[key] = tensor.detach()
        return None

    map_tensors(tree, collect)
    with torch.no_grad():
        copies = BlockingAsyncStager(cache_staged_state_dict=False).stage(tensors)
    return map_tensors(tree, lambda _, key: copies[key])
