"""What every denoiser shares: turning ids or soft tokens into vectors."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from sm_diffusion.diffusion.contracts import DenoiserInput, Mixing


def embed(weight_VD: Tensor, inputs: DenoiserInput, mixing: Mixing) -> Tensor:
    """Input vectors (B, L, D): a look-up for ids, `mixing` for soft tokens."""
    if isinstance(inputs, Tensor):
        return F.embedding(inputs, weight_VD)
    return mixing(weight_VD, inputs)


def attention_flops(length: int, width: int) -> int:
    """FLOPs of q.k and attention.v for one position that attends to `length` others: 2 products of length x width."""
    return 4 * length * width
