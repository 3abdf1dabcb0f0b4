"""Layers of MDLM's diffusion transformer. Submodule names are those of the published checkpoints.

Architecture: Peebles and Xie (arXiv 2212.09748) with rotary embeddings, as used by SEDD and MDLM. Layer norms carry a
weight only, eps 1e-5, and run in float32; the residual stream stays float32 under autocast.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sm_diffusion.denoisers.attention import attend

FREQUENCY_WIDTH = 256
ROTARY_BASE = 10_000.0


class WeightLayerNorm(nn.Module):
    """Layer norm with a weight and no bias, computed in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x_BLD: Tensor) -> Tensor:
        with torch.autocast(x_BLD.device.type, enabled=False):
            return F.layer_norm(x_BLD.float(), self.weight.shape, self.weight.float(), None, 1e-5)


def modulate(x_BLD: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    """x (1 + scale) + shift."""
    return torch.addcmul(x_BLD + shift_B1D, x_BLD, scale_B1D)


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of the noise level through a two-layer perceptron; (B,) -> (B, cond_width)."""

    def __init__(self, cond_width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(FREQUENCY_WIDTH, cond_width), nn.SiLU(), nn.Linear(cond_width, cond_width)
        )

    def forward(self, sigma_B: Tensor) -> Tensor:
        half = FREQUENCY_WIDTH // 2
        frequencies_F = torch.exp(-math.log(10_000) * torch.arange(half, device=sigma_B.device).float() / half)
        angles_BF = sigma_B.float()[:, None] * frequencies_F
        out: Tensor = self.mlp(torch.cat([angles_BF.cos(), angles_BF.sin()], -1))
        return out


def rotary_tables(length: int, head_width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """cos and sin of position * base^(-2i / head_width), each (L, head_width / 2), float32."""
    exponents = torch.arange(0, head_width, 2, device=device).float() / head_width
    angles_LE = torch.arange(length, device=device).float()[:, None] / ROTARY_BASE**exponents
    return angles_LE.cos(), angles_LE.sin()


def rotate(x_BLHE: Tensor, cos_LE: Tensor, sin_LE: Tensor) -> Tensor:
    """Rotate the pairs (i, i + E/2) of every head; computed in float32, returned in the input's dtype."""
    cos_L1E, sin_L1E = cos_LE[:, None], sin_LE[:, None]
    first, second = x_BLHE.float().chunk(2, -1)
    return torch.cat([first * cos_L1E - second * sin_L1E, second * cos_L1E + first * sin_L1E], -1).type_as(x_BLHE)


class DiTBlock(nn.Module):
    """Attention and a GELU perceptron, each behind a modulated norm and a gated residual.

    Dropout acts on the two residual branches only.
    """

    def __init__(self, *, width: int, num_heads: int, cond_width: int, dropout: float, attention: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.attention = attention
        self.norm1 = WeightLayerNorm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = WeightLayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
        )
        self.adaLN_modulation = nn.Linear(cond_width, 6 * width)
        nn.init.zeros_(self.adaLN_modulation.weight)
        nn.init.zeros_(self.adaLN_modulation.bias)

    def forward(
        self, x_BLD: Tensor, cond_BC: Tensor, rotary: tuple[Tensor, Tensor], attention_mask_BL: Tensor | None
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(cond_BC)[:, None].chunk(6, -1)
        branch_BLD = self._attention(modulate(self.norm1(x_BLD), shift1, scale1), rotary, attention_mask_BL)
        x_BLD = x_BLD + gate1 * self._drop(branch_BLD)
        branch_BLD = self.mlp(modulate(self.norm2(x_BLD), shift2, scale2))
        out_BLD: Tensor = x_BLD + gate2 * self._drop(branch_BLD)
        return out_BLD

    def _drop(self, x_BLD: Tensor) -> Tensor:
        return F.dropout(x_BLD, self.dropout, self.training)

    def _attention(
        self, x_BLD: Tensor, rotary: tuple[Tensor, Tensor], attention_mask_BL: Tensor | None
    ) -> Tensor:
        batch, length, _ = x_BLD.shape
        q_BLHE, k_BLHE, v_BLHE = self.attn_qkv(x_BLD).view(batch, length, 3, self.num_heads, -1).unbind(2)
        out_BLHE = attend(rotate(q_BLHE, *rotary), rotate(k_BLHE, *rotary), v_BLHE, attention_mask_BL, self.attention)
        out: Tensor = self.attn_out(out_BLHE.reshape(batch, length, -1))
        return out


class VocabularyEmbedding(nn.Module):
    """The input embedding matrix (V, D)."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, width))
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))


class OutputLayer(nn.Module):
    """Modulated final norm and the zero-initialised head (V, D) with a bias."""

    def __init__(self, *, vocab_size: int, width: int, cond_width: int) -> None:
        super().__init__()
        self.norm_final = WeightLayerNorm(width)
        self.linear = nn.Linear(width, vocab_size)
        self.adaLN_modulation = nn.Linear(cond_width, 2 * width)
        for layer in (self.linear, self.adaLN_modulation):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x_BLD: Tensor, cond_BC: Tensor) -> Tensor:
        """The hidden states the head is applied to; the head itself belongs to the readout."""
        shift_B1D, scale_B1D = self.adaLN_modulation(cond_BC)[:, None].chunk(2, -1)
        return modulate(self.norm_final(x_BLD), shift_B1D, scale_B1D)
