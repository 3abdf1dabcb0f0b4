"""The forward process: replace tokens by the mask."""

from __future__ import annotations

from torch import Tensor


def mask_tokens(
    ids_BL: Tensor, mask_probability_B: Tensor, uniform_BL: Tensor, mask_id: int, maskable_BL: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mask position (b, l) where uniform < mask_probability_b and the position is maskable.

    Returns (x_t of shape (B, L), masked_BL bool). Prompt and padding positions (maskable False) keep their token.
    """
    masked_BL = uniform_BL < mask_probability_B[:, None]
    if maskable_BL is not None:
        masked_BL = masked_BL & maskable_BL
    return ids_BL.masked_fill(masked_BL, mask_id), masked_BL
