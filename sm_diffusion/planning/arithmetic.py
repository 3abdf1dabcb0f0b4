"""FLOPs and days: the arithmetic that plans of every network share. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

# Dense bf16 peak, TFLOP/s, from the vendor's data sheets (SXM form, no sparsity).
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "B200": 2250.0}


@dataclass(frozen=True)
class Flops:
    """Of one token: forward through blocks and head (at the masked share), the training step, the extra pass's part."""

    forward: float
    training: float
    extra: float

    @property
    def extra_share(self) -> float:
        return self.extra / self.training


def training_flops(
    blocks: float, head: float, *, masked_share: float, p_sm: float, recompute_blocks: bool = False
) -> Flops:
    """blocks, head: forward FLOPs of one position. The head runs at the masked positions only.

    A training step is forward + backward (twice the forward), plus with probability p_sm one more forward pass, plus
    the blocks once more when their activations are recomputed.
    """
    forward = blocks + masked_share * head
    extra = p_sm * forward
    return Flops(forward, 3 * forward + extra + (blocks if recompute_blocks else 0), extra)


def days(flops: float, *, peak_tflops: float, mfu: float, num_devices: int) -> float:
    """flops / (devices x peak x MFU), in days."""
    return flops / (num_devices * peak_tflops * 1e12 * mfu) / 86_400
