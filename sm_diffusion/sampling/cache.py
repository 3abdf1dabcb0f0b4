"""Keys and values that are not computed again in every step (Fast-dLLM, arXiv 2505.22618), with or without feedback.

Decoding goes block by block (`Blockwise`). When a row enters a block, all its positions are computed and their keys
and values stored (a refresh); in the block's other steps only a window of positions is, and attends to the stored rest:

    PrefixCache   the block and everything after it      DualCache   the block

What is exact. Attention is full, so a token drawn in the block changes the keys of every other position from the
second layer on; the stored ones do not follow. Caches are therefore approximate, with two exceptions: with
refresh_steps=1 every step is a refresh and nothing is approximated, and in a network of one layer keys depend on the
inputs alone, so that both caches are exact without feedback and PrefixCache with it. Under feedback DualCache also
leaves the soft inputs and the memories of later blocks as they were at the last refresh.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from sm_diffusion.diffusion.contracts import Readout
from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.diffusion.readouts.base import KeepLogits
from sm_diffusion.types import Memory, UserError


@runtime_checkable
class WindowedDenoiser(Protocol):
    """A denoiser that can compute some positions of a row and attend to stored keys and values of the others."""

    shift_logits: bool

    def new_store(self, num_rows: int, length: int) -> Any: ...

    def windowed(self, store: Any, rows_R: Tensor, positions_RW: Tensor) -> AbstractContextManager[None]:
        """Within it, `forward` takes inputs of shape (R, W) and gives its readout hidden states of (R, L, D)."""


class CacheScope(ABC):
    """Which positions are computed between two refreshes.

    refresh_steps: steps from one refresh to the next within a block; 1: every step (exact); None: once a block.
    """

    def __init__(self, *, refresh_steps: int | None = None) -> None:
        if refresh_steps is not None and refresh_steps < 1:
            raise UserError(f"sampler.refresh_steps={refresh_steps}: must be >= 1, or null for once a block")
        self.refresh_steps = refresh_steps

    @abstractmethod
    def window(self, block_RL: Tensor) -> Tensor:
        """bool: positions predicted anew, given those of the current block; padding need not be left out."""


def _since_first(block_RL: Tensor) -> Tensor:
    return block_RL.long().cumsum(1) > 0


class PrefixCache(CacheScope):
    """The block and all that follows are computed; what stands before the block is stored."""

    def window(self, block_RL: Tensor) -> Tensor:
        return _since_first(block_RL)


class DualCache(CacheScope):
    """From the block's first position to its last (tokens given in between included)."""

    def window(self, block_RL: Tensor) -> Tensor:
        return _since_first(block_RL) & _since_first(block_RL.flip(1)).flip(1)


class Pass(NamedTuple):
    """One call of the network.

    rows_R:       int64, rows of the batch.
    renewed_RL:   bool, positions whose prediction is made; None: all.
    positions_RW: int64, positions that are computed; None: all, nothing is stored.
    """

    rows_R: Tensor
    renewed_RL: Tensor | None = None
    positions_RW: Tensor | None = None


def positions_of_rows(wanted_RL: Tensor) -> Tensor:
    """int64 (R, W): the True positions of every row in order; shorter rows repeat their first."""
    count_R1 = wanted_RL.sum(1, keepdim=True)
    width = int(count_R1.max())
    order_RW = (~wanted_RL).byte().argsort(dim=1, stable=True)[:, :width]
    within_RW = torch.arange(width, device=wanted_RL.device) < count_R1
    return torch.where(within_RW, order_RW, order_RW[:, :1])


class CacheRun:
    """The stored keys and values of one batch, and how old each row's are."""

    def __init__(self, scope: CacheScope, predictor: Predictor, ids_BL: Tensor, real_BL: Tensor | None) -> None:
        denoiser = predictor.denoiser
        if not isinstance(denoiser, WindowedDenoiser):
            raise UserError(
                f"sampler.cache: {type(denoiser).__name__} keeps no keys and values: set sampler.cache to none, or "
                "use a Qwen2, Qwen3 or Llama backbone"
            )
        if isinstance(predictor.remember_at(ids_BL.new_zeros(0)), KeepLogits):
            raise UserError("sampler.cache: not with soft_mask.full_vocabulary: set sampler.cache to none")
        self.scope = scope
        self.predictor = predictor
        self.denoiser = denoiser
        self.store = denoiser.new_store(*ids_BL.shape)
        self.real_BL = torch.ones_like(ids_BL, dtype=torch.bool) if real_BL is None else real_BL.bool()
        self.block_B = torch.full_like(ids_BL[:, 0], -1)  # first position of the block a row was last computed in
        self.age_B = torch.zeros_like(self.block_B)  # steps since the refresh

    def passes(self, rows_R: Tensor, block_BL: Tensor | None) -> list[Pass]:
        """One call for the rows that are refreshed, one for the others. block_BL None: the policy has no blocks."""
        if block_BL is None:
            return [Pass(rows_R)]
        block_RL = block_BL[rows_R]
        first_R = block_RL.byte().argmax(1)
        stale_R = (self.block_B[rows_R] != first_R) | ~block_RL.any(1)
        if self.scope.refresh_steps is not None:
            stale_R = stale_R | (self.age_B[rows_R] + 1 >= self.scope.refresh_steps)
        self.block_B[rows_R] = first_R
        self.age_B[rows_R] = torch.where(stale_R, 0, self.age_B[rows_R] + 1)
        parts = []
        for chosen_R, refresh in ((stale_R, True), (~stale_R, False)):
            index_S = chosen_R.nonzero().squeeze(1)
            if len(index_S):
                parts.append(self._pass(rows_R[index_S], block_RL[index_S], refresh))
        return parts

    def _pass(self, rows_R: Tensor, block_RL: Tensor, refresh: bool) -> Pass:
        real_RL = self.real_BL[rows_R]
        if refresh:
            return Pass(rows_R, None, positions_of_rows(real_RL))
        renewed_RL = self.scope.window(block_RL) & real_RL
        wanted_RL = renewed_RL
        if self.denoiser.shift_logits:  # the hidden state to the left predicts a token
            left_RL = torch.cat([renewed_RL[:, 1:], torch.zeros_like(renewed_RL[:, :1])], 1)
            wanted_RL = renewed_RL | (left_RL & real_RL)
        return Pass(rows_R, renewed_RL, positions_of_rows(wanted_RL))

    def predict(self, part: Pass, ids_RL: Tensor, memory: Memory | None, readout: Readout, **conditions: Any) -> Any:
        """Run the predictor on the positions of the pass."""
        positions_RW = part.positions_RW
        if positions_RW is None:
            return self.predictor(ids_RL, memory, readout, **conditions)
        if memory is not None:
            index_RWK = positions_RW[..., None].expand(-1, -1, memory.ids_BLK.shape[-1])
            memory = Memory(
                memory.ids_BLK.gather(1, index_RWK),
                memory.probs_BLK.gather(1, index_RWK),
                memory.neg_entropy_BL.gather(1, positions_RW),
            )
        with self.denoiser.windowed(self.store, part.rows_R, positions_RW):
            return self.predictor(ids_RL.gather(1, positions_RW), memory, readout, **conditions)


def keep_old(part: Pass, old: Any, new: Any) -> Any:
    """The memory after a pass: the new one where predictions were made, the old one elsewhere."""
    if part.renewed_RL is None or old is None or new is None:
        return new
    renewed_RL1 = part.renewed_RL[..., None]
    return Memory(
        torch.where(renewed_RL1, new.ids_BLK, old.ids_BLK),
        torch.where(renewed_RL1, new.probs_BLK, old.probs_BLK),
        torch.where(part.renewed_RL, new.neg_entropy_BL, old.neg_entropy_BL),
    )
