"""Settings of the diffusion transformer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sm_diffusion.denoisers.dit.model import DiT, DiTShape
from sm_diffusion.denoisers.settings import NetworkSettings
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.registry import MISSING, register


@register("model", "dit")
@dataclass
class DiTSettings(NetworkSettings):
    """The diffusion transformer of MDLM."""

    width: int = MISSING  # residual stream, a multiple of 2 * num_heads
    num_blocks: int = MISSING
    num_heads: int = MISSING
    cond_width: int = 128  # width of the time embedding
    dropout: float = 0.1  # probability, on the residual branches
    time_conditioning: bool = False  # tell the network the noise level; off as published

    def shape(self, vocab_size: int) -> DiTShape:
        """Sizes of the network with a vocabulary of `vocab_size`, the mask included."""
        return DiTShape(
            vocab_size=vocab_size,
            width=self.width,
            num_blocks=self.num_blocks,
            num_heads=self.num_heads,
            cond_width=self.cond_width,
        )

    def build(self, *, vocab_size: int, mask_id: int) -> DiT:
        return DiT(
            self.shape(vocab_size),
            parameterization=Subs(mask_id),
            dropout=self.dropout,
            time_conditioning=self.time_conditioning,
            attention=self.attention,
            checkpoint_blocks=self.activation_checkpointing,
        )

    def problems(self) -> Iterator[str]:
        for key in ("width", "num_blocks", "num_heads", "cond_width"):
            if not vars(self)[key] > 0:
                yield f"model.{key}={vars(self)[key]}: must be positive"
        if not 0 <= self.dropout <= 0.999:
            yield f"model.dropout={self.dropout}: must lie in [0, 0.999]"
        if self.num_heads > 0 and self.width % (2 * self.num_heads):
            good = max(1, round(self.width / (2 * self.num_heads))) * 2 * self.num_heads
            yield (
                f"model.width={self.width}: must be a multiple of 2 * model.num_heads = {2 * self.num_heads} "
                f"(rotary halves every head); set model.width={good}"
            )
