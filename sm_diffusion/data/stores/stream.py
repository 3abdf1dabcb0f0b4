"""Training data straight from files, for a corpus larger than the disk: nothing is written but a few counts.

The corpus's slices are dealt once, by (seed, sizes), to a fixed number of lanes. A lane is an endless sequence of
windows: pass p reads the lane's slices in an order drawn from (seed, lane, p), packs each slice into windows, and
shuffles every block of `shuffle_sequences` windows. Lane s fills the rows [s G/S, (s+1) G/S) of every global batch, so
the global batches depend on neither ranks nor workers; these only decide who reads which lane. A lane shows all its
windows once before any of them again; lanes hold about equally much, but their passes end at different steps.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sm_diffusion.data.corpora.records import Slice
from sm_diffusion.data.loader import LoaderSettings, resumed_position
from sm_diffusion.data.order import accumulation_steps
from sm_diffusion.data.stores.shard_writer import Recipe, SliceTokens
from sm_diffusion.files import digest_bytes
from sm_diffusion.types import Batch, UserError


@dataclass(frozen=True)
class StreamSettings:
    """lanes: S, divides the global batch; most ranks x workers that share the reading without overlap.
    shuffle_sequences: windows that a lane shuffles at a time, held in memory.
    """

    lanes: int = 8
    shuffle_sequences: int = 2048

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UserError(f"data.stream.{name}={value}: must be at least 1")


def permutation(length: int, *key: int) -> NDArray[np.int64]:
    """An order that depends on the key alone."""
    words = np.random.Philox(key=np.frombuffer(digest_bytes(json.dumps(key))[:16], dtype="<u8")).random_raw(length)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def deal(slices: Sequence[Slice], sizes: Sequence[float], *, lanes: int, seed: int) -> list[list[int]]:
    """Numbers of the slices of each lane: shuffled, then each to the lane that holds least so far."""
    if len(slices) < lanes:
        raise UserError(
            f"data.stream.lanes={lanes}: the corpus has only {len(slices)} slices: lower it, or lower "
            f"data.shard_documents (parquet) or data.shard_bytes"
        )
    held = [(0.0, lane) for lane in range(lanes)]
    dealt: list[list[int]] = [[] for _ in range(lanes)]
    for number in permutation(len(slices), seed, 0).tolist():
        load, lane = min(held)
        held[lane] = (load + sizes[number], lane)
        dealt[lane].append(number)
    return dealt


class SliceCounts:
    """How many windows a slice gives, noted in a file once it has been read, so that a resumed run skips it unread.

    Knowing a count changes no batch. Any number of processes append; a torn line is ignored.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._counts: dict[Slice, int] = {}
        if path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    *part, windows = json.loads(line)
                    self._counts[Slice(*part)] = int(windows)
                except (ValueError, TypeError, RecursionError):
                    continue

    def get(self, part: Slice) -> int | None:
        return self._counts.get(part)

    def note(self, part: Slice, windows: int) -> None:
        if part not in self._counts:
            self._counts[part] = windows
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([*part, windows]) + "\n")


class Lane:
    """One lane's endless windows. number: of the lane, part of the random key."""

    def __init__(
        self, *, recipe: Recipe, slices: Sequence[Slice], number: int, seed: int, block: int, counts: SliceCounts
    ) -> None:
        self._recipe, self._slices, self._counts = recipe, list(slices), counts
        self._number, self._seed, self._block = number, seed, block

    def windows(self, start: int) -> Iterator[NDArray[np.integer]]:
        """Windows (L,) from number `start` on, counted from the beginning of training."""
        for turn in itertools.count():
            total = yield from self._pass(turn, max(start, 0))
            if total == 0:
                raise UserError(
                    f"data: lane {self._number} of the stream holds no sequence of data.length="
                    f"{self._recipe.length}: lower data.length or data.stream.lanes, or loosen the filters"
                )
            start -= total

    def _pass(self, turn: int, skip: int) -> Generator[NDArray[np.integer], None, int]:
        """Pass number `turn` without its first `skip` windows; returns how many windows the pass has."""
        counts = [count for part in self._slices if (count := self._counts.get(part)) is not None]
        if len(counts) == len(self._slices) and skip >= sum(counts):
            return sum(counts)
        need = skip // self._block * self._block  # blocks before this one are not needed at all
        position = need_held = 0
        held: list[NDArray[np.integer]] = []
        for number in permutation(len(self._slices), self._seed, 1, self._number, turn).tolist():
            part = self._slices[number]
            known = self._counts.get(part)
            if known is not None and position + known <= need:
                position += known
                continue
            seen = 0
            for windows in SliceTokens(self._recipe, "train", part).windows():
                seen += len(windows)
                unneeded = min(max(need - position, 0), len(windows))
                position += unneeded
                windows = windows[unneeded:]
                while len(windows):
                    taken = windows[: self._block - need_held]
                    held.append(taken)
                    need_held += len(taken)
                    position += len(taken)
                    windows = windows[len(taken) :]
                    if need_held == self._block:
                        yield from self._shuffled(held, turn, position - need_held, skip)
                        held, need_held = [], 0
            self._counts.note(part, seen)
        if need_held:
            yield from self._shuffled(held, turn, position - need_held, skip)
        return position

    def _shuffled(
        self, held: list[NDArray[np.integer]], turn: int, start: int, skip: int
    ) -> Iterator[NDArray[np.integer]]:
        """The block that begins at window `start` of the pass, without what comes before window `skip`."""
        block = np.concatenate(held)
        order = permutation(len(block), self._seed, 2, self._number, turn, start)
        for place in order[max(skip - start, 0) :]:
            yield block[place]


class _LaneRows(IterableDataset[NDArray[np.int64]]):
    """For every global batch and lane of this rank, the rows (k, L) that the rank needs; workers share the lanes."""

    def __init__(self, plan: StreamPlan, first_batch: int) -> None:
        self._plan = plan
        self._first = first_batch

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        worker = get_worker_info()
        mine = self._plan.needed if worker is None else self._plan.needed[worker.id :: worker.num_workers]
        streams = [(self._plan.lane(lane).windows(self._first * self._plan.share), rows) for lane, rows in mine]
        while True:
            for stream, rows in streams:
                chunk = np.stack([next(stream) for _ in range(self._plan.share)])
                yield chunk[rows].astype(np.int64)


class StreamPlan:
    """Which lanes a rank reads, and which rows of them it needs.

    recipe: corpus, tokenizer and length.     counts_path: file of `SliceCounts`.

    Errors: UserError if the lanes do not divide the global batch, or the ranks cannot share it evenly.
    """

    def __init__(
        self,
        *,
        recipe: Recipe,
        settings: StreamSettings,
        loader: LoaderSettings,
        rank: int,
        world_size: int,
        counts_path: Path,
    ) -> None:
        total, micro = loader.global_batch_sequences, loader.micro_batch_sequences
        if total % settings.lanes:
            good = [number for number in range(1, settings.lanes + 1) if total % number == 0]
            raise UserError(
                f"data.stream.lanes={settings.lanes}: must divide data.global_batch_sequences={total}: "
                f"set it to {good[-1]}"
            )
        self.accumulation = accumulation_steps(
            global_batch_sequences=total, micro_batch_sequences=micro, world_size=world_size
        )
        self.share = total // settings.lanes
        self.loader, self._recipe, self._settings, self._counts_path = loader, recipe, settings, counts_path
        rows = [row for row in range(total) if row // micro % world_size == rank]
        self.rows = np.array(rows, dtype=np.int64)
        self.needed: list[tuple[int, list[int]]] = []  # (lane, its rows that this rank needs)
        for lane, group in itertools.groupby(rows, key=lambda row: row // self.share):
            self.needed.append((lane, [row % self.share for row in group]))
        slices = recipe.source.slices["train"]
        sizes = [float(min(part.stop - part.start, 2**40)) for part in slices]
        dealt = deal(slices, sizes, lanes=settings.lanes, seed=loader.seed)
        self._slices = [[slices[number] for number in numbers] for numbers in dealt]
        self._counts: SliceCounts | None = None

    def lane(self, number: int) -> Lane:
        if self._counts is None:
            self._counts = SliceCounts(self._counts_path)
        return Lane(
            recipe=self._recipe,
            slices=self._slices[number],
            number=number,
            seed=self.loader.seed,
            block=self._settings.shuffle_sequences,
            counts=self._counts,
        )

    @property
    def order(self) -> dict[str, int | str]:
        """What decides the sequence of global batches."""
        return {
            "stream": self._recipe.key,
            "lanes": self._settings.lanes,
            "shuffle_sequences": self._settings.shuffle_sequences,
            "global_batch_sequences": self.loader.global_batch_sequences,
            "seed": self.loader.seed,
        }


class StreamLoader:
    """Endless training batches of one rank; resumes exactly, with any number of ranks and workers.

    Its only state is the number of micro-batches handed out. An iteration never ends.
    """

    def __init__(self, plan: StreamPlan, *, num_workers: int) -> None:
        self._plan = plan
        lanes = len(plan.needed)
        # Workers take turns, so their number divides the lanes.
        self._num_workers = max((n for n in range(1, num_workers + 1) if lanes % n == 0), default=0)
        self._position = 0
        self._current: object = None

    def __iter__(self) -> Iterator[Batch]:
        self._current = current = object()
        plan = self._plan
        batch_number, skip = divmod(self._position, plan.accumulation)
        rows = DataLoader(
            _LaneRows(plan, batch_number),
            batch_size=None,
            num_workers=self._num_workers,
            generator=torch.Generator().manual_seed(0),
        )
        chunks = iter(rows)
        micro = plan.loader.micro_batch_sequences
        while True:
            parts = [torch.as_tensor(next(chunks)) for _ in plan.needed]
            ids = torch.cat(parts)
            for step in range(skip, plan.accumulation):
                assert self._current is current, "two iterations of one training loader at the same time"
                self._position += 1
                own = slice(step * micro, (step + 1) * micro)
                yield Batch(ids_BL=ids[own], rows_B=torch.from_numpy(plan.rows[own].copy()))
            skip = 0

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers, the same on every rank."""
        accumulation = self._plan.accumulation
        batches, micro_steps = divmod(self._position, accumulation)
        counts = {"global_batches": batches, "micro_steps": micro_steps, "accumulation": accumulation}
        return {**counts, **self._plan.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state; ranks, workers and micro-batch may differ if it lies between optimizer steps.

        Errors: UserError if the state belongs to another order, or lies inside a global batch divided otherwise.
        """
        for name, now in self._plan.order.items():
            if state.get(name) != now:
                raise UserError(
                    f"checkpoint: the order of the stream changed: {name} was {state.get(name)} and is {now}: set it "
                    f"back to resume, or start a new run from the checkpoint's weights with init_from"
                )
        self._position = resumed_position(state, self._plan.accumulation)
        self._current = None
