"""Random numbers of sampling: a pure function of (seed of the row, step, position in the row's own text).

A row's text therefore depends on neither its batch size, its place in the batch, its neighbours nor its padding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sm_diffusion.types import UserError

_TAG = 0x5A4D  # keeps these streams apart from those of training, which use small tags
_WORDS_PER_COUNT = 4  # one Philox count gives four 64-bit words: four uniform numbers a position


class StepNoise(NamedTuple):
    """Uniform float64 numbers on [0, 1) of one step.

    move_BL:  decides whether a position is unmasked or re-masked.
    token_BL: decides which token is drawn there.
    order_BL: breaks ties and perturbs orders.
    row_B:    one number a row (hitting times).
    """

    move_BL: Tensor
    token_BL: Tensor
    order_BL: Tensor
    row_B: Tensor


class Noise(ABC):
    """A source of random numbers for the sampling loop."""

    @abstractmethod
    def step(self, step: int, masked_BL: Tensor) -> StepNoise:
        """The numbers of step `step` (0 first), on the device of `masked_BL` (the positions masked before it)."""


class RowNoise(Noise):
    """Philox (Salmon et al. 2011) keyed by a row's seed; its counter is (position, step).

    seeds:        one integer a row.
    positions_BL: int64, each position's rank among the real tokens of its row (`Canvas.positions_BL`).
    """

    def __init__(self, seeds: Sequence[int], positions_BL: Tensor) -> None:
        if len(seeds) != positions_BL.shape[0]:
            raise UserError(f"{len(seeds)} seeds for {positions_BL.shape[0]} rows: give one seed a row")
        self.seeds = [int(seed) % 2**64 for seed in seeds]
        self.index_BL1 = positions_BL.cpu()[..., None]
        self.widths = (positions_BL.amax(1) + 1).tolist() if positions_BL.shape[1] else [0] * len(seeds)

    def step(self, step: int, masked_BL: Tensor) -> StepNoise:
        width = max([1, *self.widths])
        numbers_BPW = np.zeros((len(self.seeds), width, _WORDS_PER_COUNT))
        for row, (seed, row_width) in enumerate(zip(self.seeds, self.widths, strict=True)):
            # numpy's Philox adds 1 to the counter before each block: (0, step) starts every step afresh.
            philox = np.random.Philox(key=[seed, _TAG], counter=[0, step, 0, 0])
            numbers_BPW[row, : max(1, row_width)] = np.random.Generator(philox).random((max(1, row_width), 4))
        numbers = torch.from_numpy(numbers_BPW)
        numbers_BLW = numbers.gather(1, self.index_BL1.expand(-1, -1, _WORDS_PER_COUNT)).to(masked_BL.device)
        row_B = numbers[:, 0, 3].to(masked_BL.device)
        move_BL, token_BL, order_BL, _ = numbers_BLW.unbind(-1)
        return StepNoise(move_BL, token_BL, order_BL, row_B)
