"""`smd plan`: memory of a DiT by part, from arithmetic. Tests compare each part with what torch really allocates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sm_diffusion.planning.devices import AVERAGES, COPIES, GRADIENTS, MOMENTS, WEIGHTS

FLOAT32, BFLOAT16 = 4, 2


@dataclass(frozen=True)
class Parameters:
    """total, and of it: embedding and head (vocabulary x width each), norms and head bias in `other`."""

    total: int
    embedding: int
    head: int

    @property
    def non_embedding(self) -> int:
        """All that is neither the input embedding nor the head's matrix."""
        return self.total - self.embedding - self.head


def state_bytes(parameters: Parameters, *, ema: bool, mixed: bool) -> dict[str, int]:
    """Bytes that do not depend on the batch: float32 weights, gradients, AdamW's two moments, EMA; under autocast the
    bfloat16 copies of the matrices, kept from forward to backward."""
    count = parameters.total
    parts = {
        WEIGHTS[0]: FLOAT32 * count,
        GRADIENTS[0]: FLOAT32 * count,
        MOMENTS[0]: 2 * FLOAT32 * count,
    }
    if ema:
        parts[AVERAGES[0]] = FLOAT32 * count
    if mixed:
        parts[COPIES] = BFLOAT16 * (count - parameters.embedding)
    # The chunked loss makes the head's gradient in the forward pass, and scales a copy of it in the backward pass.
    parts["head gradient made forward"] = FLOAT32 * parameters.head
    return parts


def block_activation_bytes(width: int, *, mixed: bool, mask_bytes: int) -> int:
    """Bytes one position keeps in one DiT block for the backward pass.

    Float32 whatever the precision, 4 x width: the two norms' inputs and outputs (the residual stream). In the
    precision of the matrices, 18 x width: inputs of the four matrices (1 + 1 + 1 + 4), GELU's input (4), qkv (3),
    rotated q and k (2), two gated branches (2). mask_bytes, 2 x width: the two dropout masks.
    """
    return width * (4 * FLOAT32 + 18 * (BFLOAT16 if mixed else FLOAT32) + 2 * mask_bytes)


@dataclass(frozen=True, kw_only=True)
class ActivationShape:
    """What decides the activations of a DiT."""

    num_blocks: int
    width: int
    num_positions: int  # micro-batch sequences x length
    mixed: bool
    mask_bytes: int  # an element of a dropout mask: 0 without dropout, 1 on CUDA, that of its values on the CPU
    recompute: bool


def activation_bytes(shape: ActivationShape) -> int:
    """Of all blocks and positions. With recomputation: each block's input, and one block at a time in full."""
    one = block_activation_bytes(shape.width, mixed=shape.mixed, mask_bytes=shape.mask_bytes)
    if shape.recompute:
        return shape.num_positions * (shape.num_blocks * FLOAT32 * shape.width + one)
    return shape.num_positions * shape.num_blocks * one


def logits_chunk_bytes(vocab_size: int, num_positions: int, device_type: str) -> int:
    """The float32 buffer that one chunk of logits after another is written to; its columns are padded."""
    from sm_diffusion.diffusion.readouts.scratch import GROUP, chunk_rows

    rows = min(chunk_rows(vocab_size, device_type), num_positions)
    return FLOAT32 * rows * (math.ceil(vocab_size / GROUP) * GROUP)


def arithmetic_text(shape: ActivationShape) -> list[str]:
    """How the estimate of the activations comes about."""
    size = BFLOAT16 if shape.mixed else FLOAT32
    one = block_activation_bytes(shape.width, mixed=shape.mixed, mask_bytes=shape.mask_bytes)
    masks = f", dropout masks {2 * shape.mask_bytes} x width" if shape.mask_bytes else ""
    kept = f"4 x width, and one block in full ({one:,})" if shape.recompute else f"{one:,}"
    return [
        f"  activations: {shape.num_positions:,} positions x {shape.num_blocks} blocks x {kept} bytes",
        f"    a block in full: residual stream 16 x width, matrices {18 * size} x width{masks}",
    ]
