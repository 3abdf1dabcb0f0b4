"""The order in which sequences are seen: pure functions of plain numbers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sm_diffusion.types import UserError

IndexedRow = tuple[int, int]  # (index of the sequence in the dataset, its row in the global batch or the split)


def epoch_permutation(num_sequences: int, *, seed: int, epoch: int) -> NDArray[np.int64]:
    """Order of the sequences in one epoch: the argsort of Philox words keyed by (seed, epoch).

    Depends on nothing else: neither on library versions nor on the machine.
    """
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_sequences)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def accumulation_steps(*, global_batch_sequences: int, micro_batch_sequences: int, world_size: int) -> int:
    """A = G / (W b): micro-steps of every process before an optimizer step.

    Errors: UserError with the nearest global batches that work, if W b does not divide G.
    """
    step = micro_batch_sequences * world_size
    if global_batch_sequences % step:
        below, above = global_batch_sequences // step * step, (global_batch_sequences // step + 1) * step
        choices = f"{below} or {above}" if below else f"{above}"
        raise UserError(
            f"data.global_batch_sequences={global_batch_sequences}: not divisible by {world_size} processes x "
            f"data.micro_batch_sequences={micro_batch_sequences}: set it to {choices}"
        )
    return global_batch_sequences // step


class GlobalBatchSampler:
    """Training order for one rank; together the ranks see the same global batches whatever W, b and A are.

    Epoch e permutes the dataset by (seed, e); its global batch g is rows perm[g G : (g + 1) G], and the last, partial
    global batch of an epoch is dropped. Rank r takes in micro-step a the rows [(a W + r) b, (a W + r + 1) b) of it.

    num_sequences: dataset size.     global_batch_sequences: G.     micro_batch_sequences: b.
    rank, world_size: r, W.          seed: >= 0.

    Errors: UserError if G is not divisible by W b, or the dataset is smaller than G.
    """

    def __init__(
        self,
        *,
        num_sequences: int,
        global_batch_sequences: int,
        micro_batch_sequences: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        assert 0 <= rank < world_size, (rank, world_size)
        if num_sequences < global_batch_sequences:
            raise UserError(
                f"data.global_batch_sequences={global_batch_sequences}: more than the {num_sequences} training "
                f"sequences there are: lower it, shorten data.length or add text"
            )
        self.accumulation = accumulation_steps(
            global_batch_sequences=global_batch_sequences,
            micro_batch_sequences=micro_batch_sequences,
            world_size=world_size,
        )
        self.num_sequences = num_sequences
        self.global_batch_sequences = global_batch_sequences
        self.micro_batch_sequences = micro_batch_sequences
        self.seed = seed
        self._rank = rank
        self._world_size = world_size

    @property
    def global_batches_per_epoch(self) -> int:
        """Optimizer steps in one pass over the data."""
        return self.num_sequences // self.global_batch_sequences

    @property
    def micro_batches_per_epoch(self) -> int:
        """Micro-steps of each rank in one pass over the data."""
        return self.global_batches_per_epoch * self.accumulation

    def micro_batches(self, start: int) -> Iterator[list[IndexedRow]]:
        """From micro-step `start`, counted from the beginning of training, to the end of its epoch."""
        epoch, first = divmod(start, self.micro_batches_per_epoch)
        # What is held all through the epoch: 4 bytes a sequence, 1/512 of a shard's bytes at 1,024 tokens.
        kept = np.uint32 if self.num_sequences < 2**32 else np.int64
        order = epoch_permutation(self.num_sequences, seed=self.seed, epoch=epoch).astype(kept)
        for step in range(first, self.micro_batches_per_epoch):
            batch, micro_step = divmod(step, self.accumulation)
            row = (micro_step * self._world_size + self._rank) * self.micro_batch_sequences
            rows = range(row, row + self.micro_batch_sequences)
            offset = batch * self.global_batch_sequences
            indices = order[offset + rows.start : offset + rows.stop].tolist()
            yield list(zip(indices, rows, strict=True))


def eval_batches(
    *, num_sequences: int, max_sequences: int | None, batch_sequences: int, rank: int, world_size: int
) -> list[list[IndexedRow]]:
    """Batches of one rank over an evaluation split: fixed order, every sequence on exactly one rank.

    max_sequences: evaluate that many, evenly spread over the split; None: all of them.
    batch_sequences: largest batch. Every rank gets the same number of batches, so that sharded networks, which
    communicate in every forward pass, do not wait for each other forever; batch sizes differ by at most one. (Only
    with a largest batch of 1 and ranks that cannot share evenly, some batches hold 2.)

    Returns (i, i) pairs: the row of a sequence is its index in the split, so its noise depends on nothing else.

    Errors: UserError if there are fewer sequences than ranks.
    """
    count = num_sequences if max_sequences is None else min(num_sequences, max_sequences)
    if count < world_size:
        raise UserError(
            f"data.max_validation_sequences={max_sequences}: {count} of {num_sequences} validation sequences cannot "
            f"be shared by {world_size} processes: raise it, shorten data.length or add validation text"
        )
    chosen = np.arange(count, dtype=np.int64) * num_sequences // count
    shard = chosen[count * rank // world_size : count * (rank + 1) // world_size]
    largest_shard = -(-count // world_size)
    num_batches = min(-(-largest_shard // batch_sequences), count // world_size)
    return [[(index, index) for index in part.tolist()] for part in np.array_split(shard, num_batches)]
