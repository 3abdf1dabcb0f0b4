"""Ctrl-C in a program: one line, status 130, nothing half-written; a second one ends it at once. Standard library only.

    listen()      while modules are imported: there is nothing to save, the program ends where it stands
    unwind()      from then on: `Interrupted` is raised, so that what is being written is tidied up
    training      has a handler of its own (`training.callbacks.preemption`), which saves first

Whole files are written beside their place and renamed, so that ending at once loses no file either.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

INTERRUPTED = 128 + signal.SIGINT  # what shells expect


class Interrupted(SystemExit):
    """The user pressed Ctrl-C. `launch` says so in one line."""


def listen() -> None:
    """End with one line at the first Ctrl-C. Call before anything slow is imported."""
    _set(_end_with_a_line)


def unwind() -> None:
    """Raise `Interrupted` at the first Ctrl-C, end at once at the second."""
    _set(_raise)


def end_at_once(number: int = signal.SIGINT, frame: FrameType | None = None) -> NoReturn:
    """Leave without any tidying: for the second Ctrl-C."""
    os._exit(INTERRUPTED)


def is_ignored() -> bool:
    """Whether whoever started the program wants it deaf to Ctrl-C (nohup, a job in the background)."""
    return signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def started_by_lightning() -> bool:
    """Whether this process was started by the first one of its machine, which takes any status but 0 for a fault."""
    schedulers = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")
    return os.environ.get("LOCAL_RANK", "0") != "0" and not any(name in os.environ for name in schedulers)


def say_interrupted() -> None:
    """The line of a program that ends because of Ctrl-C, once for all ranks."""
    if all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        print(f"interrupted; what was finished is kept (exit status {INTERRUPTED})", file=sys.stderr, flush=True)


def _set(handler: object) -> None:
    if not is_ignored():
        signal.signal(signal.SIGINT, handler)  # type: ignore[arg-type]


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGINT, end_at_once)
    raise Interrupted(0 if started_by_lightning() else INTERRUPTED)


def _end_with_a_line(number: int, frame: FrameType | None) -> NoReturn:
    say_interrupted()
    os._exit(0 if started_by_lightning() else INTERRUPTED)
