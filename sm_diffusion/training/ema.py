"""Exponential moving average of the weights, elementwise on whatever shard of a parameter this rank holds."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sm_diffusion.training.strategies.sharding import local_part, placed_like
from sm_diffusion.training.strategies.zero_shards import full_of, is_partitioned


class ExponentialMovingAverage:
    """shadow <- d shadow + (1 - d) weight, with d = min(decay, (1 + n) / (10 + n)) at update n = 1, 2, ...

    The ramp and the order of updates are the published ones (MDLM). Only trainable parameters are averaged.
    """

    def __init__(self, named: Iterable[tuple[str, nn.Parameter]], *, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.parameters = {name: parameter for name, parameter in named if parameter.requires_grad}
        # Shards of FSDP2 keep their kind, so that a checkpoint can gather them; slices of ZeRO-3 are plain tensors.
        self.shadow = {
            name: local_part(parameter).clone() if is_partitioned(parameter) else parameter.detach().clone()
            for name, parameter in self.parameters.items()
        }
        self._raw: dict[str, Tensor] | None = None

    @torch.no_grad()
    def update(self) -> None:
        """Move the shadow towards the current weights; call once an optimizer step."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        shards = [local_part(value) for value in self.shadow.values()]  # elementwise: no communication
        weights = [local_part(parameter).detach() for parameter in self.parameters.values()]
        torch._foreach_lerp_(shards, weights, 1.0 - decay)

    @torch.no_grad()
    def swap_in(self) -> None:
        """Put the averaged weights into the module; `swap_out` brings the raw ones back."""
        assert self._raw is None, "the averaged weights are in place already"
        self._raw = {name: local_part(parameter).detach().clone() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            local_part(parameter).copy_(local_part(self.shadow[name]))

    @torch.no_grad()
    def swap_out(self) -> None:
        assert self._raw is not None, "the averaged weights are not in place"
        for name, parameter in self.parameters.items():
            local_part(parameter).copy_(self._raw[name])
        self._raw = None

    def state_dict(self) -> dict[str, object]:
        """For a checkpoint. A collective under ZeRO-3, whose slices it makes whole."""
        shadow = {
            name: full_of(value, parameter).cpu() if is_partitioned(parameter) else value
            for (name, parameter), value in zip(self.parameters.items(), self.shadow.values(), strict=True)
        }
        return {"decay": self.decay, "num_updates": self.num_updates, "shadow": shadow}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, object]) -> None:
        """Continue from a saved average. KeyError when a parameter has none."""
        self.num_updates = int(state["num_updates"])  # type: ignore[call-overload]
        shadow: dict[str, Tensor] = state["shadow"]  # type: ignore[assignment]
        for name, value in self.shadow.items():
            parameter = self.parameters[name]
            value.copy_(placed_like(shadow[name], parameter if is_partitioned(parameter) else value))
