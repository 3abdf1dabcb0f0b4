"""What the loop remembers between steps: the memory of every position that is still masked, row by row.

Values, not containers: `write` and `remask` return a new store, so an older one can be fed again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from sm_diffusion.diffusion.parameterization import NEGATIVE
from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.diffusion.readouts.base import KeepLogits, Summarize
from sm_diffusion.types import LogitsMemory, Memory


class Feedback(ABC):
    """Memories of a batch of B rows; `rows_R` are int64 indices of the rows that are run."""

    @property
    @abstractmethod
    def keeps(self) -> bool:
        """False when the predictor remembers nothing (MDLM): then a prediction is needed only where one draws."""

    @abstractmethod
    def read(self, rows_R: Tensor) -> Any:
        """The memory of these rows as the predictor takes it; None when nothing was ever written."""

    @abstractmethod
    def write(self, rows_R: Tensor, memory: Any) -> Feedback:
        """Replace the memory of these rows."""

    @abstractmethod
    def remask(self, remask_BL: Tensor, ids_BL: Tensor) -> Feedback:
        """Positions that turn from token ids_BL into a mask remember that token for certain: one-hot, H = 0 (as
        published)."""


class NoFeedback(Feedback):
    """MDLM."""

    @property
    def keeps(self) -> bool:
        return False

    def read(self, rows_R: Tensor) -> Any:
        return None

    def write(self, rows_R: Tensor, memory: Any) -> Feedback:
        return self

    def remask(self, remask_BL: Tensor, ids_BL: Tensor) -> Feedback:
        return self


class SparseFeedback(Feedback):
    """Top-k memories, O(B L K)."""

    def __init__(self, num_rows: int, memory: Memory | None = None) -> None:
        self.num_rows = num_rows
        self.memory = memory

    @property
    def keeps(self) -> bool:
        return True

    def read(self, rows_R: Tensor) -> Memory | None:
        if self.memory is None or len(rows_R) == self.num_rows:
            return self.memory
        return Memory(*(part[rows_R] for part in self.memory))

    def write(self, rows_R: Tensor, memory: Memory) -> Feedback:
        if len(rows_R) == self.num_rows:
            return SparseFeedback(self.num_rows, memory)
        old = self.memory or Memory(*(part.new_zeros(self.num_rows, *part.shape[1:]) for part in memory))
        return SparseFeedback(
            self.num_rows,
            Memory(*(part.index_copy(0, rows_R, new) for part, new in zip(old, memory, strict=True))),
        )

    def remask(self, remask_BL: Tensor, ids_BL: Tensor) -> Feedback:
        if self.memory is None:
            return self
        first_K = torch.arange(self.memory.ids_BLK.shape[-1], device=ids_BL.device) == 0
        certain_ids_BLK = torch.where(first_K, ids_BL[..., None], 0)
        return SparseFeedback(
            self.num_rows,
            Memory(
                torch.where(remask_BL[..., None], certain_ids_BLK, self.memory.ids_BLK),
                torch.where(remask_BL[..., None], first_K.to(self.memory.probs_BLK.dtype), self.memory.probs_BLK),
                self.memory.neg_entropy_BL.masked_fill(remask_BL, 0.0),
            ),
        )


class DenseFeedback(Feedback):
    """Whole predictions of the masked positions, O(N V): the full-vocabulary soft mask only."""

    def __init__(self, shape: torch.Size, memory: LogitsMemory | None = None) -> None:
        self.shape = shape
        self.memory = memory

    @property
    def keeps(self) -> bool:
        return True

    def read(self, rows_R: Tensor) -> LogitsMemory | None:
        if self.memory is None or len(rows_R) == self.shape[0]:
            return self.memory
        new_row_B = torch.full((self.shape[0],), -1, device=rows_R.device)
        new_row_B[rows_R] = torch.arange(len(rows_R), device=rows_R.device)
        row_N = new_row_B[self.memory.positions_N // self.shape[1]]
        positions_N = row_N * self.shape[1] + self.memory.positions_N % self.shape[1]
        return LogitsMemory(positions_N[row_N >= 0], self.memory.logits_NV[row_N >= 0])

    def write(self, rows_R: Tensor, memory: LogitsMemory) -> Feedback:
        rows_N, columns_N = memory.positions_N // self.shape[1], memory.positions_N % self.shape[1]
        fresh = LogitsMemory(rows_R[rows_N] * self.shape[1] + columns_N, memory.logits_NV)
        if self.memory is None:
            return DenseFeedback(self.shape, fresh)
        stale_N = torch.isin(self.memory.positions_N // self.shape[1], rows_R)
        return DenseFeedback(self.shape, _join(self.memory, ~stale_N, fresh))

    def remask(self, remask_BL: Tensor, ids_BL: Tensor) -> Feedback:
        if self.memory is None:
            return self
        positions_N = remask_BL.flatten().nonzero().squeeze(1)
        logits_NV = self.memory.logits_NV.new_full((len(positions_N), self.memory.logits_NV.shape[1]), NEGATIVE)
        logits_NV.scatter_(1, ids_BL.flatten()[positions_N, None], 0.0)
        others_N = ~torch.isin(self.memory.positions_N, positions_N)
        return DenseFeedback(self.shape, _join(self.memory, others_N, LogitsMemory(positions_N, logits_NV)))


def _join(old: LogitsMemory, keep_N: Tensor, new: LogitsMemory) -> LogitsMemory:
    return LogitsMemory(
        torch.cat([old.positions_N[keep_N], new.positions_N]), torch.cat([old.logits_NV[keep_N], new.logits_NV])
    )


def feedback_of(predictor: Predictor, ids_BL: Tensor) -> Feedback:
    """The empty store that fits the predictor's memories."""
    readout = predictor.remember_at(ids_BL.new_zeros(0))
    if readout is None:
        return NoFeedback()
    if isinstance(readout, Summarize):
        return SparseFeedback(ids_BL.shape[0])
    if isinstance(readout, KeepLogits):
        return DenseFeedback(ids_BL.shape)
    raise TypeError(f"no feedback store for memories made by {type(readout).__name__}; have Summarize and KeepLogits")
