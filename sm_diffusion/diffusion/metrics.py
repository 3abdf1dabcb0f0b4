"""Numbers of a training step, told from wherever they arise: `record("train/entropy", entropy_BL, where=soft_BL)`.

What is told is added up on its device and becomes a number only when the log is written, so that recording waits for
no device and sends nothing between processes. Without a recorder (sampling, evaluation) `record` does nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor


class Recorder:
    """Means of named numbers since they were last read.

    The mean of a name is (sum of all it was given) / (how many that were), over all steps and processes. All
    processes must record the same names in the same interval: branch on what they share (the coin of a step), never
    on their own data.
    """

    def __init__(self) -> None:
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def record(self, name: str, value: float | Tensor, *, where: Tensor | None = None) -> None:
        """Add a number, or the elements of a tensor, to the mean of `name`.

        Args:
            name: the column of the log, such as "train/grad_norm".
            value: a number or a tensor of any shape.
            where: bool, shaped as `value`: the elements that count; None: all do.
        """
        found = torch.as_tensor(value).detach()
        if where is None:
            self.record_sum(name, found.sum(dtype=torch.float64), found.numel())
        else:
            self.record_sum(name, torch.where(where, found, 0).sum(dtype=torch.float64), where.sum())

    @torch.no_grad()
    def record_sum(self, name: str, total: Tensor, count: int | Tensor) -> None:
        """Add `count` numbers whose sum is `total`, both scalars."""
        total, count_ = total.detach(), torch.as_tensor(count)
        before = self._sums.get(name)
        self._sums[name] = (total, count_) if before is None else (before[0] + total, before[1] + count_)

    def read(self, reduce: Callable[[Tensor], Tensor], *, device: torch.device) -> dict[str, float]:
        """The means, by name; the next interval begins. This waits for the device.

        Args:
            reduce: the sum of a float64 tensor over all processes.
            device: where `reduce` takes it.
        """
        found = self.sums(reduce, device=device)
        self._sums = {}
        return {name: total / count if count else math.nan for name, (total, count) in found.items()}

    def sums(self, reduce: Callable[[Tensor], Tensor], *, device: torch.device) -> dict[str, tuple[float, float]]:
        """(sum, count) of every name over all processes, for a checkpoint; the interval goes on. Arguments: `read`."""
        if not self._sums:
            return {}
        names = sorted(self._sums)
        flat = [part.to(device).double() for name in names for part in self._sums[name]]
        pairs = reduce(torch.stack(flat)).view(-1, 2).tolist()
        return {name: (total, count) for name, (total, count) in zip(names, pairs, strict=True)}

    def restore(self, sums: Mapping[str, tuple[float, float]], *, first: bool) -> None:
        """Go on from `sums`, which one process takes over: `first`. The others know the names."""
        for name, pair in sums.items():
            total, count = (torch.tensor(value if first else 0.0, dtype=torch.float64) for value in pair)
            self._sums[name] = (total, count)


_CURRENT: ContextVar[Recorder | None] = ContextVar("recorder", default=None)


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Inside the context, `record` tells this recorder. It holds for this thread only."""
    token = _CURRENT.set(recorder)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def record(name: str, value: float | Tensor, *, where: Tensor | None = None) -> None:
    """`Recorder.record` of the step that is running; nothing outside of a training step."""
    recorder = _CURRENT.get()
    if recorder is not None:
        recorder.record(name, value, where=where)
