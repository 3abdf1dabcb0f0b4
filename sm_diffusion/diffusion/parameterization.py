"""What a network's logits mean."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

# Finite, so that 0 * NEGATIVE stays 0 in p * log p; far below any logit, so that exp() gives exactly 0.
NEGATIVE = -1e30


class Parameterization(ABC):
    """Turns raw logits into the logits of a distribution over clean tokens."""

    @abstractmethod
    def constrain_(self, logits_NV: Tensor) -> None:
        """Apply to a scratch buffer of float32 logits, in place, before any softmax."""

    @abstractmethod
    def constrain(self, logits_NV: Tensor) -> Tensor:
        """The same out of place, differentiable: the plain twin."""


class Unconstrained(Parameterization):
    """Logits as they are (Dream, LLaDA)."""

    def constrain_(self, logits_NV: Tensor) -> None:
        return

    def constrain(self, logits_NV: Tensor) -> Tensor:
        return logits_NV


class Subs(Parameterization):
    """SUBS of MDLM (arXiv 2406.07524, section 3.2): the mask token has probability zero.

    Its second half, unmasked positions keep their token, holds by construction: readouts look at masked positions
    only. `log_probs` gives the whole published tensor for tests and small uses.
    """

    def __init__(self, mask_id: int) -> None:
        self.mask_id = mask_id

    def constrain_(self, logits_NV: Tensor) -> None:
        logits_NV[..., self.mask_id] = NEGATIVE

    def constrain(self, logits_NV: Tensor) -> Tensor:
        column_V = torch.zeros(logits_NV.shape[-1], dtype=torch.bool, device=logits_NV.device)
        column_V[self.mask_id] = True
        return logits_NV.masked_fill(column_V, NEGATIVE)

    def log_probs(self, logits_BLV: Tensor, ids_BL: Tensor) -> Tensor:
        """log p(x_0 | x_t), (B, L, V): normalised at masked positions, one-hot (0 and NEGATIVE) at the others."""
        log_probs_BLV = self.constrain(logits_BLV).log_softmax(-1)
        one_hot_BLV = torch.full_like(log_probs_BLV, NEGATIVE).scatter(-1, ids_BL[..., None], 0.0)
        return torch.where((ids_BL == self.mask_id)[..., None], log_probs_BLV, one_hot_BLV)
