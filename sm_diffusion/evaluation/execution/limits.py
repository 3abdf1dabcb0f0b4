"""What a program may use: limits of the sandbox, of a benchmark's problem, and what the user sets of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from sm_diffusion.types import UserError


@dataclass(frozen=True)
class ExecutionLimits:
    """What one program may use. Every limit is a positive number, anything else raises UserError; None: not said here,
    so that another's holds (`over`), in the end `DEFAULT_LIMITS`.
    """

    cpu_seconds: float | None = None  # CPU time of each process, s, rounded up
    wall_seconds: float | None = None  # time from start to verdict, tests included, s
    memory_mb: int | None = None  # address space of each process, MiB; the whole is bounded by max_processes times this
    file_mb: int | None = None  # size of each file, MiB; a private root bounds the work folder at 4 times this
    max_processes: int | None = None  # processes and threads at a time, the program itself included
    output_kb: int | None = None  # what it may print, KiB; it is stopped when it prints more

    def __post_init__(self) -> None:
        for line in self.wrong():
            raise UserError(f"limits.{line}")

    def wrong(self) -> Iterator[str]:
        """A line for every limit that is not a positive number."""
        for name, value in self.values().items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and 0 < value < 1e9):
                example = DEFAULT_LIMITS.values()[name]
                yield f"{name}: {value!r} is not a positive number; for example {example}"

    def values(self) -> dict[str, Any]:
        """Every limit by name."""
        return {item.name: vars(self)[item.name] for item in fields(ExecutionLimits)}

    def over(self, other: ExecutionLimits | None) -> ExecutionLimits:
        """These limits, and those of `other` where these say nothing."""
        theirs = {} if other is None else other.values()
        own = {name: value for name, value in self.values().items() if value is not None}
        return ExecutionLimits(**{**theirs, **own})


DEFAULT_LIMITS = ExecutionLimits(
    cpu_seconds=10.0, wall_seconds=20.0, memory_mb=1024, file_mb=16, max_processes=8, output_kb=1024
)


@dataclass(frozen=True)
class ExecutorSettings(ExecutionLimits):
    """`evaluator.executor`: limits of one program a model wrote, null: the benchmark's own; and how many run at a time.

    The benchmark's are `DEFAULT_LIMITS`, larger ones for the problems of HumanEval+ and MBPP+.
    """

    workers: int | None = None  # programs at a time; null: every core

    def __post_init__(self) -> None:
        """Nothing: `problems` names the keys."""

    def problems(self) -> Iterator[str]:
        if self.workers is not None and self.workers < 1:
            yield f"evaluator.executor.workers={self.workers}: must be positive, or null for every core"
        for line in self.wrong():
            yield f"evaluator.executor.{line}"
