"""The diffusion transformer of MDLM, from 169M parameters down to CPU size.

Input embedding and head are untied; embedding kaiming-uniform (a = sqrt 5), head and modulations zero, the rest as
torch initialises linear layers: the published initialisation. Parameter names are the published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sm_diffusion.denoisers.attention import resolve_backend
from sm_diffusion.denoisers.dit.layers import (
    DiTBlock,
    OutputLayer,
    TimestepEmbedder,
    VocabularyEmbedding,
    rotary_tables,
)
from sm_diffusion.denoisers.embedding import attention_flops, embed
from sm_diffusion.diffusion.contracts import Denoiser, DenoiserInput, Head, Mixing, Readout
from sm_diffusion.diffusion.parameterization import Parameterization


@dataclass(frozen=True, kw_only=True)
class DiTShape:
    """Sizes of a DiT. width must be a multiple of 2 * num_heads (rotary halves every head)."""

    vocab_size: int
    width: int
    num_blocks: int
    num_heads: int
    cond_width: int

    def num_parameters(self) -> int:
        """Trainable parameters, from arithmetic alone."""
        width, cond = self.width, self.cond_width
        block = 12 * width * width + 7 * width + 6 * width * (cond + 1)
        time = 257 * cond + cond * (cond + 1)
        head = self.vocab_size * (width + 1) + width + 2 * width * (cond + 1)
        return self.vocab_size * width + time + self.num_blocks * block + head

    def flops_per_token(self, length: int) -> tuple[int, int]:
        """(blocks, head): forward FLOPs of one position, 2 per multiply-add, attention included."""
        block = 2 * 12 * self.width**2 + attention_flops(length, self.width)
        return self.num_blocks * block, 2 * self.width * self.vocab_size


class DiT(Denoiser):
    """Embedding, blocks, modulated norm, head. Without time conditioning sigma is zeroed, as published: the time
    embedding is then a learned constant."""

    def __init__(
        self,
        shape: DiTShape,
        *,
        parameterization: Parameterization,
        dropout: float = 0.0,
        time_conditioning: bool = False,
        attention: str = "auto",
        checkpoint_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.parameterization = parameterization
        self.time_conditioning = time_conditioning
        self.checkpoint_blocks = checkpoint_blocks
        self.vocab_embed = VocabularyEmbedding(shape.vocab_size, shape.width)
        self.sigma_map = TimestepEmbedder(shape.cond_width)
        self.blocks = nn.ModuleList(
            DiTBlock(
                width=shape.width,
                num_heads=shape.num_heads,
                cond_width=shape.cond_width,
                dropout=dropout,
                attention=resolve_backend(attention),
            )
            for _ in range(shape.num_blocks)
        )
        self.output_layer = OutputLayer(
            vocab_size=shape.vocab_size, width=shape.width, cond_width=shape.cond_width
        )

    def forward(
        self,
        inputs: DenoiserInput,
        readout: Readout,
        *,
        mixing: Mixing,
        sigma_B: Tensor | None = None,
        attention_mask_BL: Tensor | None = None,
    ) -> Any:
        x_BLD = embed(self.vocab_embed.embedding, inputs, mixing).float()
        if sigma_B is None or not self.time_conditioning:
            sigma_B = x_BLD.new_zeros(1)
        cond_BC = F.silu(self.sigma_map(sigma_B))
        rotary = rotary_tables(x_BLD.shape[1], self.shape.width // self.shape.num_heads, x_BLD.device)
        for block in self.blocks:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                x_BLD = checkpoint(block, x_BLD, cond_BC, rotary, attention_mask_BL, use_reentrant=False)
            else:
                x_BLD = block(x_BLD, cond_BC, rotary, attention_mask_BL)
        hidden_BLD = self.output_layer(x_BLD, cond_BC)
        head = Head(self.output_layer.linear.weight, self.output_layer.linear.bias, self.parameterization)
        return readout(hidden_BLD, head)

    def input_embedding(self) -> nn.Module:
        return self.vocab_embed

    def shard_units(self) -> Sequence[nn.Module]:
        return list(self.blocks)

    def flops_per_token(self, length: int) -> tuple[int, int]:
        return self.shape.flops_per_token(length)
