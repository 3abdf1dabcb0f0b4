"""From encoded samples to the batches a network takes: padded, a sample a row, or several packed into a row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sm_diffusion.data.chat.collate import (
    EXTRA_PADDING,
    PADDING_MULTIPLE,
    ChatSample,
    collate,
    extra_padding,
    padded_length,
)
from sm_diffusion.types import Batch

_PADDING_TAG = 0xC4A7  # keeps these random numbers apart from all others


def longest_row(max_tokens: int) -> int:
    """Tokens of the longest padded row that samples of at most `max_tokens` give."""
    return padded_length(max_tokens, EXTRA_PADDING - 1)


class RowMaker(ABC):
    """Makes batches of the rows of a `ChatTable`.

    pads_are_maskable: see `collate`.     seed: of the extra padding, U{0 .. 49}.
    """

    def __init__(self, *, pad_id: int, pads_are_maskable: bool, seed: int) -> None:
        self.pad_id = pad_id
        self.pads_are_maskable = pads_are_maskable
        self.seed = seed

    @abstractmethod
    def __call__(self, table_rows: Batch, step: int) -> Batch:
        """table_rows: of a `ChatTable`.     step: optimizer step they are for, 0 in evaluation."""

    def extra(self, row: int, step: int) -> int:
        """Extra padding drawn for a row: a function of (seed, step, row), of no rank and no worker."""
        word = np.random.Philox(key=[self.seed, _PADDING_TAG], counter=[row, step, 0, 0]).random_raw(1)[0]
        return extra_padding(float(word >> np.uint64(11)) * 2.0**-53)


def samples_of(table_rows: Batch) -> list[ChatSample]:
    """The samples in rows [number of tokens, prompt length, tokens ...]."""
    return [ChatSample(row[2 : 2 + row[0]], row[1]) for row in table_rows.ids_BL.tolist()]


@final
class PaddedRows(RowMaker):
    """As published: a sample a row, all padded to the longest + U{0 .. 49} (the first row's draw), a multiple of 8."""

    def __call__(self, table_rows: Batch, step: int) -> Batch:
        return collate(
            samples_of(table_rows),
            table_rows.rows_B,
            pad_id=self.pad_id,
            extra=self.extra(int(table_rows.rows_B[0]), step),
            pads_are_maskable=self.pads_are_maskable,
        )


@final
class PackedRows(RowMaker):
    """Samples share rows of at most `row_tokens` tokens; attention is block-diagonal (`Batch.places_PQ`).

    Every sample brings the padding it would have alone (published micro-batch of 1) and is noised as it would be alone,
    so its loss is what it would be alone. With `pads_are_maskable=False` it brings none.
    """

    def __init__(self, *, pad_id: int, pads_are_maskable: bool, seed: int, row_tokens: int) -> None:
        super().__init__(pad_id=pad_id, pads_are_maskable=pads_are_maskable, seed=seed)
        self.row_tokens = row_tokens

    def __call__(self, table_rows: Batch, step: int) -> Batch:
        samples, rows = samples_of(table_rows), table_rows.rows_B.tolist()
        lengths = [len(sample.ids) for sample in samples]
        if self.pads_are_maskable:
            pairs = zip(lengths, rows, strict=True)
            lengths = [padded_length(length, self.extra(row, step)) for length, row in pairs]
        length = max(lengths)
        ids_BL = torch.full((len(samples), length), self.pad_id, dtype=torch.int64)
        for row, sample in enumerate(samples):
            ids_BL[row, : len(sample.ids)] = torch.tensor(sample.ids, dtype=torch.int64)
        columns_L = torch.arange(length)
        real_BL = columns_L < torch.tensor(lengths)[:, None]
        maskable_BL = real_BL & (columns_L >= torch.tensor([[sample.prompt_length] for sample in samples]))
        places_PQ = places(lengths, length=length, row_tokens=self.row_tokens)
        return Batch(ids_BL, table_rows.rows_B, real_BL, maskable_BL, places_PQ)


class _Row(NamedTuple):
    free: int
    sequences: list[int]


def first_fit(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Numbers of the sequences of each row: longest first, each into the first row with room for it."""
    rows: list[_Row] = []
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        assert lengths[number] <= row_tokens, f"a sequence of {lengths[number]} tokens in rows of {row_tokens}"
        place = next((place for place, row in enumerate(rows) if row.free >= lengths[number]), len(rows))
        if place == len(rows):
            rows.append(_Row(row_tokens, []))
        free, sequences = rows[place]
        rows[place] = _Row(free - lengths[number], [*sequences, number])
    return [row.sequences for row in rows]


def places(lengths: Sequence[int], *, length: int, row_tokens: int) -> Tensor:
    """`Batch.places_PQ` of sequences of these lengths in (B, length), laid out by `first_fit`; Q a multiple of 8."""
    rows: list[NDArray[np.int64]] = [
        np.concatenate([number * length + np.arange(lengths[number], dtype=np.int64) for number in numbers])
        for numbers in first_fit(lengths, row_tokens)
    ]
    width = -(-max(map(len, rows)) // PADDING_MULTIPLE) * PADDING_MULTIPLE
    out_PQ = np.full((len(rows), width), -1, dtype=np.int64)
    for place, row in enumerate(rows):
        out_PQ[place, : len(row)] = row
    return torch.from_numpy(out_PQ)
