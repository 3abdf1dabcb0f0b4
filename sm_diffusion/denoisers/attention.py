"""The one place where an attention backend is chosen. Full (non-causal) attention only."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor
from torch.nn import functional as F

from sm_diffusion.types import UserError

BACKENDS = ("auto", "sdpa", "flash")


def resolve_backend(name: str) -> str:
    """Turn a configured name into "sdpa" or "flash". "auto" is SDPA, which picks its own fused kernel."""
    if name not in BACKENDS:
        raise UserError(f"model.attention={name}: unknown backend, choose one of {', '.join(BACKENDS)}")
    if name == "flash" and importlib.util.find_spec("flash_attn") is None:
        raise UserError("model.attention=flash: the package flash-attn is not installed; use model.attention=sdpa")
    return "flash" if name == "flash" else "sdpa"


def attend(q_BLHE: Tensor, k_BLHE: Tensor, v_BLHE: Tensor, attention_mask_BL: Tensor | None, backend: str) -> Tensor:
    """softmax(q k^T / sqrt(E)) v over all positions; (B, L, H, E), E the head width.

    attention_mask_BL: bool, False at padding: no position attends to it. Flash attention runs only without a mask, in
    half precision on CUDA; anything else takes SDPA.
    """
    if backend == "flash" and attention_mask_BL is None and q_BLHE.is_cuda and q_BLHE.element_size() == 2:
        from flash_attn import flash_attn_func  # type: ignore[import-not-found,unused-ignore]

        return flash_attn_func(q_BLHE, k_BLHE, v_BLHE)  # type: ignore[no-any-return,unused-ignore]
    if attention_mask_BL is not None and attention_mask_BL.dtype != torch.bool:
        raise UserError("data.packing=block_diagonal: this network takes no packed rows: set data.packing=none")
    mask_B11L = None if attention_mask_BL is None else attention_mask_BL[:, None, None, :]
    out_BHLE = F.scaled_dot_product_attention(
        q_BLHE.transpose(1, 2), k_BLHE.transpose(1, 2), v_BLHE.transpose(1, 2), attn_mask=mask_B11L
    )
    return out_BHLE.transpose(1, 2)
