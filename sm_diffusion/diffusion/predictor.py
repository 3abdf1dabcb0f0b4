"""A predictor is a denoiser plus the way its masked positions are embedded. Soft-masking is this one plug-in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sm_diffusion.diffusion import mixing as mixings
from sm_diffusion.diffusion.contracts import Denoiser, Mixing, Readout
from sm_diffusion.diffusion.soft_mask import SoftMaskBase


class Predictor(nn.Module, ABC):
    """Predicts the clean tokens of x_t, with or without a memory of the previous prediction.

    The predictor is what sharding engines wrap at the root: embedding, mixing, head and omegas are all read inside
    its forward.
    """

    def __init__(self, denoiser: Denoiser, *, mask_id: int) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.mask_id = mask_id

    @abstractmethod
    def forward(
        self,
        ids_BL: Tensor,
        memory: Any,
        readout: Readout,
        *,
        sigma_B: Tensor | None = None,
        attention_mask_BL: Tensor | None = None,
        strength: float | Tensor = 1.0,
    ) -> Any:
        """Embed x_t (softly, where `memory` holds a prediction), run the denoiser, return the readout's result.

        memory:   what `bootstrap` or an earlier step remembered; None: plain masks.
        strength: decode-time factor on omega_s; a number, or one a row, (B, 1).
        """

    @abstractmethod
    def remember_at(self, positions_N: Tensor) -> Readout | None:
        """The readout that makes a memory of these positions, or None when the predictor keeps no memory."""

    @property
    @abstractmethod
    def may_skip_parameters(self) -> bool:
        """True when a training step may leave parameters without gradient: DDP must be told."""

    def bootstrap(self, ids_BL: Tensor, positions_N: Tensor, *, feedback: bool, **conditions: Any) -> Any:
        """The first of two passes over the same x_t, without gradient: the memory of the masked positions.

        None without feedback, or when the predictor keeps no memory: then one pass is all there is.
        """
        readout = self.remember_at(positions_N) if feedback else None
        if readout is None:
            return None
        with torch.no_grad():
            return self(ids_BL, None, readout, **conditions)


class HardMaskPredictor(Predictor):
    """MDLM: a masked position is the mask embedding, whatever was predicted there."""

    def forward(
        self,
        ids_BL: Tensor,
        memory: Any,
        readout: Readout,
        *,
        sigma_B: Tensor | None = None,
        attention_mask_BL: Tensor | None = None,
        strength: float | Tensor = 1.0,
    ) -> Any:
        return self.denoiser(
            ids_BL, readout, mixing=mixings.linear, sigma_B=sigma_B, attention_mask_BL=attention_mask_BL
        )

    def remember_at(self, positions_N: Tensor) -> Readout | None:
        return None

    @property
    def may_skip_parameters(self) -> bool:
        return False


class SoftMaskPredictor(Predictor):
    """Soft-masked diffusion: masked positions with a memory are embedded softly."""

    def __init__(self, denoiser: Denoiser, soft_mask: SoftMaskBase, *, mask_id: int, mixing: Mixing) -> None:
        super().__init__(denoiser, mask_id=mask_id)
        self.soft_mask = soft_mask
        self.mixing = mixing

    def forward(
        self,
        ids_BL: Tensor,
        memory: Any,
        readout: Readout,
        *,
        sigma_B: Tensor | None = None,
        attention_mask_BL: Tensor | None = None,
        strength: float | Tensor = 1.0,
    ) -> Any:
        inputs = ids_BL if memory is None else self.soft_mask(ids_BL, memory, self.mask_id, strength)
        return self.denoiser(
            inputs, readout, mixing=self.mixing, sigma_B=sigma_B, attention_mask_BL=attention_mask_BL
        )

    def remember_at(self, positions_N: Tensor) -> Readout | None:
        return self.soft_mask.remember_at(positions_N)

    @property
    def may_skip_parameters(self) -> bool:
        return True
