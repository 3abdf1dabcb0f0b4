"""The few interfaces everything hangs on: a denoiser, its head, and the readout that consumes its hidden states."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sm_diffusion.diffusion.parameterization import Parameterization
from sm_diffusion.types import DenseMixture, TokenMixture

DenoiserInput = Tensor | TokenMixture | DenseMixture


class Head(NamedTuple):
    """The last linear map of a denoiser: logits_NV = hidden_ND @ weight_VD.T + bias_V, then the parameterisation.

    weight_VD, bias_V: parameters (bias None: no bias). They are read inside the denoiser's forward, where a
                       sharding engine has gathered them.
    parameterization:  what a logit means (SUBS: the mask token has probability zero).
    """

    weight_VD: Tensor
    bias_V: Tensor | None
    parameterization: Parameterization

    def __call__(self, hidden_ND: Tensor) -> Tensor:
        """Plain float32 logits of every row, with gradients: the slow twin of the chunked kernels. O(N V) memory."""
        logits_NV = nn.functional.linear(hidden_ND, self.weight_VD, self.bias_V).float()
        return self.parameterization.constrain(logits_NV)


class Readout(Protocol):
    """Consumes the last hidden states INSIDE the denoiser's forward, so the (B, L, V) logits need never exist."""

    def __call__(self, hidden_BLD: Tensor, head: Head) -> Any: ...


class Mixing(Protocol):
    """How a weighted set of token embeddings becomes one input vector. Returns (B, L, D)."""

    def __call__(self, weight_VD: Tensor, mixture: TokenMixture | DenseMixture) -> Tensor: ...


class Denoiser(nn.Module, ABC):
    """A network that predicts clean tokens from partly masked ones. `hidden_BLD` at l predicts the token at l."""

    @abstractmethod
    def forward(
        self,
        inputs: DenoiserInput,
        readout: Readout,
        *,
        mixing: Mixing,
        sigma_B: Tensor | None = None,
        attention_mask_BL: Tensor | None = None,
    ) -> Any:
        """Run the network and return what `readout` returns.

        inputs:            int64 ids (B, L), or soft tokens.
        mixing:            how soft tokens become vectors; not called for plain ids.
        sigma_B:           noise level -log(alpha), >= 0; None: the network is not told the time.
        attention_mask_BL: bool, False at padding; or int64 segments (`packed.segments`): a position attends to those of
                           its own number only, and positions begin at 0 in each.
        """

    @abstractmethod
    def input_embedding(self) -> nn.Module:
        """The module that owns the input embedding matrix."""

    @abstractmethod
    def shard_units(self) -> Sequence[nn.Module]:
        """The repeated blocks, each wrapped by itself under FSDP and activation checkpointing."""

    @abstractmethod
    def flops_per_token(self, length: int) -> tuple[int, int]:
        """Multiply-add FLOPs of one forward pass: (per position through the blocks, per position through the head).

        Counted as 2 per multiply-add of every matrix product; attention over `length` positions included.
        """


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype autocast would run a matrix product in, or None when autocast is off."""
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None
