"""What one rank holds of a parameter under DeepSpeed's ZeRO-3, and of its optimiser's state under ZeRO-1, 2 and 3.

Under ZeRO-3 a parameter is a flat, zero-padded slice (`ds_tensor`); its own data is empty except while it is gathered.
Under every stage the optimiser works on flat float32 copies of slices, and DeepSpeed maps them to the parameters.
DeepSpeed is imported in functions only: it is an optional package.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

# The tensors of torch's AdamW that have one number for each weight.
MOMENTS = ("exp_avg", "exp_avg_sq")


def is_partitioned(tensor: Tensor) -> bool:
    """Whether DeepSpeed has partitioned this parameter (ZeRO-3)."""
    return "ds_tensor" in vars(tensor) if isinstance(tensor, nn.Parameter) else False


def local_slice(parameter: Any) -> Tensor:
    """The slice of a partitioned parameter that this rank holds, padded; writing to it changes the parameter."""
    held: Tensor = parameter.ds_tensor
    return held.detach()


def slice_of(full: Tensor, parameter: Any) -> Tensor:
    """This rank's padded slice of a full tensor that is shaped like the parameter; no communication."""
    size, world = parameter.ds_tensor.numel(), dist.get_world_size()
    flat = F.pad(full.detach().flatten(), (0, world * size - full.numel()))
    return flat.narrow(0, size * dist.get_rank(), size).to(parameter.ds_tensor.device)


def full_of(held: Tensor, parameter: Any) -> Tensor:
    """The full tensor of slices like the parameter's. A collective."""
    parts = [torch.empty_like(held) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, held.contiguous())
    full: Tensor = torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)
    return full


def gathered(parameters: Iterable[nn.Parameter], *, write: bool = False) -> AbstractContextManager[None]:
    """Full parameters inside the context, on all ranks. A collective. write: keep what rank 0 has changed."""
    partitioned = [parameter for parameter in parameters if is_partitioned(parameter)]
    if not partitioned:
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(
        partitioned, modifier_rank=0 if write else None
    )
    return context


@torch.no_grad()
def set_weight(parameter: Any, full: Tensor) -> None:
    """Put a full tensor into a parameter and into the optimiser's float32 copy; all ranks hold the same one."""
    from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

    if not is_partitioned(parameter):
        parameter.copy_(full)
        if parameter.requires_grad:
            safe_set_full_fp32_param(parameter, full.to(parameter.device))
        return
    with gathered([parameter], write=True):
        parameter.copy_(full)
    if parameter.requires_grad:
        safe_set_local_fp32_param(parameter, slice_of(full, parameter))


def moment(parameter: Any, name: str) -> Tensor:
    """The full tensor of a parameter's optimiser state. A collective."""
    from deepspeed.utils import safe_get_full_optimizer_state

    found: Tensor = safe_get_full_optimizer_state(parameter, name)
    return found.view(parameter.ds_shape if is_partitioned(parameter) else parameter.shape)


def set_moment(parameter: Any, name: str, full: Tensor) -> None:
    """Put a full tensor into a parameter's optimiser state, which must exist; all ranks hold the same one."""
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if is_partitioned(parameter):
        safe_set_local_optimizer_state(parameter, slice_of(full, parameter), name)
    else:
        safe_set_full_optimizer_state(parameter, full, name)


def forget_gradients(parameters: Iterable[Any]) -> None:
    """ZeRO-3 keeps the last gradient of a slice; one that gets none in this step would count in the norm again."""
    from deepspeed.utils import safe_set_local_grad

    for parameter in parameters:
        safe_set_local_grad(parameter, torch.zeros_like(parameter.ds_tensor))


class Flat(NamedTuple):
    """One tensor that torch's optimiser works on: this rank's slices of the parameters of a group, end to end."""

    tensor: Tensor
    group: int


def flats(zero_optimizer: Any, *, stage: int) -> list[Flat]:
    """What DeepSpeed's optimiser has made of the parameters; torch's own may hold them during a step only."""
    if stage == 3:
        groups = zero_optimizer.sub_group_to_group_id
        return [Flat(held, groups[index]) for index, held in enumerate(zero_optimizer.fp32_partitioned_groups_flat)]
    return [Flat(held, index) for index, held in enumerate(zero_optimizer.single_partition_of_fp32_groups)]


def state_of(inner: torch.optim.Optimizer, flat: Flat) -> dict[str, Tensor]:
    """The optimiser's state of a flat tensor, made of zeros where there is none yet."""
    if flat.tensor not in inner.state:
        zeros = {name: torch.zeros_like(flat.tensor.data) for name in MOMENTS}
        # Where torch's fused AdamW keeps it.
        inner.state[flat.tensor] = {"step": torch.zeros((), dtype=torch.float32, device=flat.tensor.device)} | zeros
    found: dict[str, Tensor] = inner.state[flat.tensor]
    return found


def _link(parameters: Iterable[Any], inner: torch.optim.Optimizer, held: list[Flat]) -> None:
    """Tell DeepSpeed where the states of unpartitioned parameters are; it does so itself only in a step."""
    from deepspeed.utils import lazy_init_hp_params_optimizer_state

    places = {flat.tensor.untyped_storage().data_ptr(): flat.tensor for flat in held}
    for parameter in parameters:
        if not is_partitioned(parameter) and parameter._hp_mapping is not None:
            flat = places[parameter._hp_mapping.hp_fragment.untyped_storage().data_ptr()]
            lazy_init_hp_params_optimizer_state([parameter], flat, inner.state)


def full_optimizer_state(
    inner: torch.optim.Optimizer, held: list[Flat], groups: list[list[nn.Parameter]]
) -> dict[str, Any]:
    """The state dict torch's optimiser would have without ZeRO: whole tensors on the CPU. A collective.

    groups: the model's parameters of every group of the optimiser, in its order.
    """
    state: dict[int, dict[str, Tensor]] = {}
    described, index = [], 0
    steps = {flat.group: state_of(inner, flat)["step"].detach().cpu() for flat in held}
    _link((parameter for members in groups for parameter in members), inner, held)
    for number, (group, members) in enumerate(zip(inner.param_groups, groups, strict=True)):
        first = index
        for parameter in members:
            moments = {name: moment(parameter, name).cpu() for name in MOMENTS}
            state[index] = {"step": steps[number].clone()} | moments
            index += 1
        options = {key: value for key, value in group.items() if key != "params"}
        described.append(options | {"params": list(range(first, index))})
    return {"state": state, "param_groups": described}


def load_full_optimizer_state(
    inner: torch.optim.Optimizer, held: list[Flat], groups: list[list[nn.Parameter]], saved: Mapping[str, Any]
) -> None:
    """Take over a state as `full_optimizer_state` or torch's own optimiser saves it."""
    state, first = saved["state"], 0
    for flat in held:
        state_of(inner, flat)
    _link((parameter for members in groups for parameter in members), inner, held)
    for number, (group, members) in enumerate(zip(inner.param_groups, groups, strict=True)):
        for index, parameter in enumerate(members, start=first):
            for name in MOMENTS if index in state else ():  # none: it never had a gradient
                set_moment(parameter, name, state[index][name].to(torch.float32))
        for flat in held:
            if flat.group == number and first in state:
                state_of(inner, flat)["step"].fill_(float(state[first]["step"]))
        group.update({key: value for key, value in saved["param_groups"][number].items() if key != "params"})
        first += len(members)


@contextmanager
def untouched(inner: torch.optim.Optimizer, held: list[Flat], group: int) -> Iterator[None]:
    """A step inside the context leaves a group as it is: as torch's optimiser treats weights without gradient."""
    options = inner.param_groups[group]
    saved = {index: {name: value.clone() for name, value in state_of(inner, flat).items()}
             for index, flat in enumerate(held) if flat.group == group}
    rate, options["lr"] = options["lr"], 0.0
    try:
        yield
    finally:
        options["lr"] = rate
        for index, values in saved.items():
            for name, value in state_of(inner, held[index]).items():
                value.copy_(values[name])
