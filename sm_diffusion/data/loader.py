"""Loaders that hand out `Batch`es and know exactly how far training has read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from sm_diffusion.data.order import GlobalBatchSampler, IndexedRow, eval_batches
from sm_diffusion.data.stores.arrow_cache import SequenceTable
from sm_diffusion.types import Batch, UserError

_ORDER_KEYS = {"num_sequences": "the training text", "global_batch_sequences": "data.global_batch_sequences"}


@dataclass(frozen=True)
class LoaderSettings:
    """How batches are formed.

    global_batch_sequences: G, sequences of one optimizer step over all processes and micro-steps.
    micro_batch_sequences: b, sequences of one forward pass on one process.
    eval_batch_sequences: sequences of one evaluation forward pass on one process.
    num_workers: reader processes, 0 for none; changes no batch.
    seed: >= 0, decides the order of training.
    max_validation_sequences: evaluate that many, evenly spread; None: all.
    max_train_sequences: train on the first so many only, as for a test run; None: all.

    Errors: UserError for numbers out of range.
    """

    global_batch_sequences: int
    micro_batch_sequences: int
    eval_batch_sequences: int
    num_workers: int
    seed: int
    max_validation_sequences: int | None = None
    max_train_sequences: int | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            smallest = 0 if name in ("num_workers", "seed") else 1
            if value is not None and value < smallest:
                raise UserError(f"data.{name}={value}: must be at least {smallest}")


class TokenRows(Dataset[Batch]):
    """A `SequenceTable` for the torch loader: a whole batch is read at once, with one copy."""

    def __init__(self, table: SequenceTable) -> None:
        self._table = table

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, row: IndexedRow) -> Batch:
        return self.__getitems__([row])

    def __getitems__(self, rows: Sequence[IndexedRow]) -> Batch:
        """ids_BL int64 and rows_B int64 of (dataset index, row) pairs."""
        ids_BL = torch.from_numpy(self._table.rows([index for index, _ in rows]))
        return Batch(ids_BL=ids_BL, rows_B=torch.tensor([row for _, row in rows], dtype=torch.int64))


Finish = Callable[[Batch, int], Batch]  # (rows of the table, optimizer step they are for) -> what is handed out


def _as_it_is(batch: Any) -> Any:
    return batch


def _as_read(batch: Batch, step: int) -> Batch:
    return batch


def _torch_loader(table: SequenceTable, batches: Iterable[list[IndexedRow]], *, num_workers: int) -> DataLoader[Batch]:
    """A torch loader over given batches. Its own generator keeps it from drawing from the global random stream."""
    return DataLoader(
        TokenRows(table),
        batch_sampler=batches,
        collate_fn=_as_it_is,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(0),
    )


def table_loader(
    table: SequenceTable, loader: LoaderSettings, *, rank: int, world_size: int, finish: Finish = _as_read
) -> TrainLoader:
    """Training batches of a table for one data-parallel rank."""
    limit = loader.max_train_sequences
    sampler = GlobalBatchSampler(
        num_sequences=len(table) if limit is None else min(limit, len(table)),
        global_batch_sequences=loader.global_batch_sequences,
        micro_batch_sequences=loader.micro_batch_sequences,
        seed=loader.seed,
        rank=rank,
        world_size=world_size,
    )
    return TrainLoader(table=table, sampler=sampler, num_workers=loader.num_workers, finish=finish)


def eval_loader(
    table: SequenceTable, loader: LoaderSettings, *, rank: int, world_size: int, finish: Finish = _as_read
) -> EvalLoader:
    """One rank's share of an evaluation table."""
    batches = eval_batches(
        num_sequences=len(table),
        max_sequences=loader.max_validation_sequences,
        batch_sequences=loader.eval_batch_sequences,
        rank=rank,
        world_size=world_size,
    )
    return EvalLoader(table=table, batches=batches, num_workers=loader.num_workers, finish=finish)


class TrainLoader:
    """Endless training data, one epoch an iteration; resumes exactly where it was, with any number of workers.

    The only state is the number of micro-batches handed out. A new iteration goes on from there to the end of the
    epoch: after a whole epoch the next one, after a break or a resume the rest of the current one. What workers read
    ahead does not count, and neither does an iterator that is thrown away unused.

    table: training sequences.     sampler: the order.     num_workers: reader processes, 0 for none.
    finish: makes batches of what the table holds, where that is no sequences of one length.
    """

    def __init__(
        self, *, table: SequenceTable, sampler: GlobalBatchSampler, num_workers: int, finish: Finish = _as_read
    ) -> None:
        self._table = table
        self._sampler = sampler
        self._num_workers = num_workers
        self._finish = finish
        self._position = 0
        self._current: object = None

    def __len__(self) -> int:
        """Micro-batches in one epoch on this rank."""
        return self._sampler.micro_batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        self._current = current = object()
        batches = self._sampler.micro_batches(self._position)
        for batch in _torch_loader(self._table, batches, num_workers=self._num_workers):
            assert self._current is current, "two iterations of one training loader at the same time"
            step = self._position // self._sampler.accumulation
            self._position += 1
            yield self._finish(batch, step)

    def state_dict(self) -> dict[str, int]:
        """Plain numbers, the same on every rank."""
        global_batches, micro_steps = divmod(self._position, self._sampler.accumulation)
        return {
            "global_batches": global_batches,
            "micro_steps": micro_steps,
            "accumulation": self._sampler.accumulation,
            **self._order(),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from a state; world size, micro-batch and workers may differ if it lies between optimizer steps.

        Errors: UserError if the state belongs to another order (other data, global batch or seed), or lies inside a
        global batch that is now divided otherwise.
        """
        for name, now in self._order().items():
            if state[name] != now:
                what = _ORDER_KEYS.get(name, f"data.{name}")
                raise UserError(
                    f"checkpoint: {what} changed: {name} was {state[name]} and is {now}: set it back to resume, or "
                    f"start a new run from the checkpoint's weights with init_from"
                )
        self._position = resumed_position(state, self._sampler.accumulation)
        self._current = None

    def _order(self) -> dict[str, int]:
        """What decides the sequence of global batches."""
        return {
            "num_sequences": self._sampler.num_sequences,
            "global_batch_sequences": self._sampler.global_batch_sequences,
            "seed": self._sampler.seed,
        }


def resumed_position(state: dict[str, Any], accumulation: int) -> int:
    """Micro-batches of this rank before a state. UserError inside a global batch that is now divided otherwise."""
    if state["micro_steps"] and state["accumulation"] != accumulation:
        raise UserError(
            f"checkpoint: it was written {state['micro_steps']} micro-steps into a global batch of "
            f"{state['accumulation']}, which now has {accumulation}: resume with the same number of processes and "
            f"data.micro_batch_sequences, or from a checkpoint between optimizer steps"
        )
    return int(state["global_batches"] * accumulation + state["micro_steps"])


class EvalLoader:
    """The same batches in the same order at every iteration. finish: see `TrainLoader`; its step is 0."""

    def __init__(
        self,
        *,
        table: SequenceTable,
        batches: Sequence[list[IndexedRow]],
        num_workers: int,
        finish: Finish = _as_read,
    ) -> None:
        self._table = table
        self._batches = batches
        self._num_workers = num_workers
        self._finish = finish

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in _torch_loader(self._table, self._batches, num_workers=self._num_workers):
            yield self._finish(batch, 0)
