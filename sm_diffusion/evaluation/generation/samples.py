"""Samples made once: a folder of JSON lines that survives a kill, grows, and is the same for any number of processes.

A sample's random numbers depend on (seed, index) alone, so neither batches, ranks nor restarts change it. Every rank
appends whole batches to files of its own and skips what any file already holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sm_diffusion.files import KeyedFolder, key_digest
from sm_diffusion.sampling import RowNoise, Sampler, blank


def row_seed(seed: int, index: int) -> int:
    """The seed of sample `index`: different for every (seed, index) with index < 2^32."""
    return (seed * 2**32 + index) % 2**64


@dataclass(frozen=True)
class Generation:
    """One sample.

    ids, text: what was drawn, and decoded.     nfe: network evaluations spent on it.
    seconds:   its share of the time its batch took.
    """

    index: int
    ids: list[int]
    text: str
    nfe: int
    seconds: float


class GenerationCache:
    """A folder of samples of one checkpoint, sampler and seed.

    key: everything that decides the samples; a folder with another key is refused.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self._files = KeyedFolder(folder, key, setting="evaluator.samples_dir", what="samples")
        self.folder = folder
        self.key = self._files.key

    def read(self, count: int | None = None) -> list[Generation]:
        """The samples with index < count that are there, by index. A line cut off by a kill does not count."""
        found: dict[int, Generation] = {}
        for line in self._files.lines("part"):
            sample = Generation(**line)
            if count is None or sample.index < count:
                found.setdefault(sample.index, sample)
        return [found[index] for index in sorted(found)]

    def append(self, samples: Sequence[Generation], *, rank: int) -> None:
        """Add whole lines to this rank's file."""
        self._files.append("part", [asdict(sample) for sample in samples], rank=rank)


def cache_folder(root: Path, key: Mapping[str, Any]) -> Path:
    """A folder below `root` named by the key's content."""
    return root / key_digest(key)[:24]


def generate_into(
    cache: GenerationCache,
    sampler: Sampler,
    *,
    count: int,
    length: int,
    decode: Callable[[Sequence[int]], str],
    batch_sequences: int,
    rank: int = 0,
    world_size: int = 1,
) -> int:
    """Make this rank's share of the samples 0 .. count-1 that are not there yet; how many it made.

    The seed is `cache.key["seed"]`; a rank's share are the indices = rank mod world_size.
    """
    there = {sample.index for sample in cache.read(count)}
    mine = [index for index in range(rank, count, world_size) if index not in there]
    device = next(sampler.predictor.parameters()).device
    for start in range(0, len(mine), batch_sequences):
        indices = mine[start : start + batch_sequences]
        canvas = blank(len(indices), length, mask_id=sampler.predictor.mask_id, device=device)
        noise = RowNoise([row_seed(cache.key["seed"], index) for index in indices], canvas.positions_BL)
        began = time.perf_counter()
        out = sampler.sample(canvas, noise)
        rows, nfe = canvas.texts(out.ids_BL), out.nfe_B.tolist()  # waits for the device
        seconds = (time.perf_counter() - began) / len(indices)
        cache.append(
            [Generation(index, ids, decode(ids), n, seconds) for index, ids, n in zip(indices, rows, nfe, strict=True)],
            rank=rank,
        )
    return len(mine)
