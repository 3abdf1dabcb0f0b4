"""Random numbers as a pure function of (seed, step, row): nothing to save, nothing that depends on rank or batch.

A counter-based generator (Philox, Salmon et al. 2011) is keyed by (seed, step, tag) and its counter is set to the row,
so row r of a global batch sees the same noise on 1, 2 or 8 ranks, and a resumed run draws what the uninterrupted one
would have drawn.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sm_diffusion.types import Draws

_TAGS = {"time": 1, "mask": 2, "coin": 3, "dropout": 4, "evaluation": 5, "order": 6}
_WORDS_PER_COUNT = 4  # one Philox count gives four 64-bit words
_MAX_WIDTH = 2**40  # counts between two rows


def _key(seed: int, step: int, tag: str) -> np.ndarray:
    return np.array([seed % 2**64, (step * 64 + _TAGS[tag]) % 2**64], dtype=np.uint64)


def uniforms(
    rows: list[int], width: int, *, seed: int, step: int, tag: str, row_width: int | None = None
) -> Tensor:
    """float32 multiples of 2^-24, uniform on [0, 1), (len(rows), width); row r depends on (seed, step, tag, r).

    row_width: numbers set aside for a row, >= width; a shorter call gives the first of them. Needed where widths
               differ from batch to batch: rows would otherwise change with their batch, and share numbers. None: width.
    """
    assert row_width is None or row_width >= width, (row_width, width)
    counts = -(-(row_width or width) // _WORDS_PER_COUNT)
    drawn = -(-width // _WORDS_PER_COUNT)
    key = _key(seed, step, tag)
    out = np.empty((len(rows), width), dtype=np.float32)
    start = 0
    while start < len(rows):
        end = start + 1
        if counts * _WORDS_PER_COUNT == width:  # neighbouring rows are neighbours in the counter, too
            while end < len(rows) and rows[end] == rows[end - 1] + 1:
                end += 1
        counter = rows[start] * counts
        bits = np.random.Philox(key=key, counter=[counter % 2**64, 0, 0, 0])
        words = bits.random_raw((end - start) * drawn * _WORDS_PER_COUNT).reshape(end - start, -1)[:, :width]
        out[start:end] = (words >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
        start = end
    return torch.from_numpy(out)


def training_draws(
    rows: list[int], length: int, *, num_rows: int, seed: int, step: int, row_width: int | None = None
) -> Draws:
    """The random numbers of rows `rows` (indices into the global batch of `num_rows`) at optimizer step `step`.

    row_width: longest row there can be, where lengths differ (`uniforms`).
    """
    return Draws(
        uniforms(rows, 1, seed=seed, step=step, tag="time")[:, 0],
        uniforms(rows, length, seed=seed, step=step, tag="mask", row_width=row_width),
        torch.tensor(rows),
        num_rows,
    )


def evaluation_draws(
    rows: list[int], length: int, *, num_rows: int, seed: int, repeat: int = 0, row_width: int | None = None
) -> Draws:
    """The random numbers of evaluation sequences `rows` (dataset indices out of `num_rows`).

    Times are stratified over the whole set in a shuffled order, so the estimate depends neither on the batch size nor
    on how documents are sorted.
    """
    order = np.random.Generator(np.random.Philox(key=_key(seed, repeat, "order"))).permutation(num_rows)
    step = 2**48 + repeat  # never a training step
    return Draws(
        uniforms(rows, 1, seed=seed, step=step, tag="time")[:, 0],
        uniforms(rows, length, seed=seed, step=step, tag="mask", row_width=row_width),
        torch.from_numpy(order[np.asarray(rows, dtype=np.int64)]),
        num_rows,
    )


def coin(*, seed: int, step: int, micro_step: int = 0) -> float:
    """One uniform number, equal on all ranks: ranks that disagree would hang.

    For a whole optimizer step, or with `micro_step` for each of its micro-batches; that of the first is the step's.
    """
    return float(uniforms([micro_step], 1, seed=seed, step=step, tag="coin")[0, 0])


def seed_dropout(*, seed: int, step: int, micro_step: int, rank: int) -> None:
    """Seed torch's global generators, which dropout draws from, for one micro-step of one rank."""
    bits = np.random.Philox(key=_key(seed, step, "dropout"), counter=[micro_step, rank, 0, 0])
    torch.manual_seed(int(bits.random_raw(1)[0] >> np.uint64(1)))
