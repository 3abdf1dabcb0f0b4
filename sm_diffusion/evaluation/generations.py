"""Samples made once: a folder of JSON lines that survives a kill, grows, and is the same for any number of processes.

A sample's random numbers depend on (seed, index) alone, so neither batches, ranks nor restarts change it. Every rank
appends whole batches to files of its own and skips what any file already holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sm_diffusion.evaluation.results import read_json, write_json
from sm_diffusion.sampling import RowNoise, Sampler, blank
from sm_diffusion.types import UserError

META = "samples.json"


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
        self.folder = folder
        self.key = json.loads(json.dumps(key))
        path = folder / META
        if path.exists():
            self._check(read_json(path))
        else:
            write_json(path, self.key)

    def _check(self, found: Any) -> None:
        if found == self.key:
            return
        theirs, ours = _flat(found if isinstance(found, dict) else {}), _flat(self.key)
        name = next(name for name in [*ours, *theirs] if theirs.get(name) != ours.get(name))
        there, here = (str(side.get(name))[:12] for side in (theirs, ours))
        what = "another checkpoint" if name == "checkpoint_sha256" else f"another {name}"
        raise UserError(
            f"evaluator.samples_dir={self.folder}: holds samples of {what} ({there} there, {here} here); "
            "choose another folder, or delete this one"
        )

    def read(self, count: int | None = None) -> list[Generation]:
        """The samples with index < count that are there, by index. A line cut off by a kill does not count."""
        found: dict[int, Generation] = {}
        for path in sorted(self.folder.glob("part-*.jsonl")):
            for line in _whole_lines(path):
                sample = Generation(**line)
                if count is None or sample.index < count:
                    found.setdefault(sample.index, sample)
        return [found[index] for index in sorted(found)]

    def append(self, samples: Sequence[Generation], *, rank: int) -> None:
        """Add whole lines to this rank's file; a torn end of an earlier process is cut off first."""
        path = self.folder / f"part-{rank:05d}.jsonl"
        text = "".join(json.dumps(asdict(sample), ensure_ascii=False) + "\n" for sample in samples)
        try:
            with path.open("ab+") as file:
                _cut_torn_line(file)
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = f"cannot be written ({error.strerror}); free space or choose another folder"
            raise UserError(f"{path}: {reason}") from None


def _flat(key: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"sampler": {"eta": 1}} as {"sampler.eta": 1}."""
    out: dict[str, Any] = {}
    for name, value in key.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return out


def cache_folder(root: Path, key: Mapping[str, Any]) -> Path:
    """A folder below `root` named by the key's content."""
    return root / hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:24]


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_bytes().split(b"\n")[:-1]:  # the last piece is empty, or torn
        try:
            yield json.loads(line)
        except ValueError:
            raise UserError(f"{path}: damaged; delete it to have its samples made again") from None


def _cut_torn_line(file: Any) -> None:
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


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
