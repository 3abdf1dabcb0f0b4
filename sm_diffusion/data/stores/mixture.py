"""Several prepared corpora as one, in given proportions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sm_diffusion.data.stores.arrow_cache import SequenceTable
from sm_diffusion.types import UserError


def check_weights(weights: dict[str, float], parts: Sequence[str]) -> None:
    """Raises UserError unless every part has a weight > 0 and nothing else has one."""
    if set(weights) != set(parts):
        raise UserError(
            f"data.mixture={weights}: name exactly the corpora of data.parts: {', '.join(sorted(parts)) or 'none'}"
        )
    for name, weight in weights.items():
        if not (weight > 0 and math.isfinite(weight)):
            raise UserError(f"data.mixture.{name}={weight}: a weight must be positive; leave the corpus out instead")


class MixtureTable:
    """Sequences of several tables: of N in an epoch, about N w_k / sum(w) come from table k.

    N is the smallest number for which every sequence of every table appears: the table that is largest for its weight
    is shown once, the others again and again, each sequence equally often up to one. Which of them are shown once
    more than the others is drawn from the seed. The order within an epoch is the sampler's.

    tables: of one length L.     weights: > 0, need not sum to 1.     seed: >= 0.
    """

    def __init__(self, *, tables: Sequence[SequenceTable], weights: Sequence[float], seed: int) -> None:
        assert tables, "a mixture of nothing"
        assert len(tables) == len(weights)
        shares = np.array(weights, dtype=np.float64) / sum(weights)
        lengths = np.array([len(table) for table in tables], dtype=np.int64)
        if lengths.min() == 0:
            raise UserError(f"data.mixture: corpus {int(lengths.argmin())} of the mixture has no training sequence")
        total = float((lengths / shares).max())
        self._tables = list(tables)
        self._lengths = lengths
        self._counts = np.maximum(np.rint(total * shares).astype(np.int64), lengths)
        self._ends = np.cumsum(self._counts)
        self._offsets = np.array(
            [
                int(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)).random_raw() % length)
                for number, length in enumerate(lengths.tolist())
            ],
            dtype=np.int64,
        )
        self.length = tables[0].length

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def counts(self) -> list[int]:
        """Sequences of each table in an epoch, repetitions counted."""
        return [int(count) for count in self._counts]

    def locate(self, index: int) -> tuple[int, int]:
        """(table, row in it) of a sequence of the mixture."""
        part = int(np.searchsorted(self._ends, index, side="right"))
        place = index - int(self._ends[part] - self._counts[part])
        return part, int((place + self._offsets[part]) % self._lengths[part])

    def rows(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Sequences `indices` as a new int64 array of shape (len(indices), L)."""
        out = np.empty((len(indices), self.length), dtype=np.int64)
        for place, index in enumerate(indices):
            part, row = self.locate(index)
            out[place] = self._tables[part].rows([row])[0]
        return out


class ConcatTable:
    """The sequences of several tables, one after the other."""

    def __init__(self, tables: Sequence[SequenceTable]) -> None:
        self._tables = list(tables)
        self._ends = np.cumsum([len(table) for table in tables], dtype=np.int64)
        self.length = tables[0].length

    def __len__(self) -> int:
        return int(self._ends[-1])

    def rows(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Sequences `indices` as a new int64 array of shape (len(indices), L)."""
        out = np.empty((len(indices), self.length), dtype=np.int64)
        for place, index in enumerate(indices):
            part = int(np.searchsorted(self._ends, index, side="right"))
            before = int(self._ends[part - 1]) if part else 0
            out[place] = self._tables[part].rows([index - before])[0]
        return out
