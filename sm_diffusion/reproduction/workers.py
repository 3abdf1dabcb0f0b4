"""Programs run for `smd run`: one at a time on this terminal, or several at once, each with a log of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

GRACE_SECONDS = 60  # that an interrupted program gets to write a checkpoint
POLL_SECONDS = 0.2
LOG_TAIL_LINES = 12


class Workers(ABC):
    """slots: programs that run at once."""

    slots: int

    @abstractmethod
    def start(self, folder: Path, command: Sequence[str]) -> None:
        """Start the program that writes `folder`."""

    @abstractmethod
    def wait(self) -> tuple[Path, int, str]:
        """(folder, exit status, end of its log) of a program that ended. At least one must be running."""

    @abstractmethod
    def stop(self) -> None:
        """End all that still run, in order."""


class Terminal(Workers):
    """One program at a time, its output on this terminal. call: command -> exit status."""

    slots = 1

    def __init__(self, call: Callable[[Sequence[str]], int]) -> None:
        self.call = call
        self.ended: list[tuple[Path, int, str]] = []

    def start(self, folder: Path, command: Sequence[str]) -> None:
        self.ended.append((folder, self.call(command), ""))

    def wait(self) -> tuple[Path, int, str]:
        return self.ended.pop()

    def stop(self) -> None:
        pass


class Processes(Workers):
    """Several at once; the output of each goes to `<experiment>/.logs/<row>.log`.

    threads: CPU threads of each (OMP_NUM_THREADS, unless that is set already).
    """

    def __init__(self, slots: int, *, threads: int) -> None:
        self.slots = slots
        self.environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        self.running: dict[Path, subprocess.Popen[bytes]] = {}

    def start(self, folder: Path, command: Sequence[str]) -> None:
        log = log_of(folder)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as file:
            self.running[folder] = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self.environment
            )

    def wait(self) -> tuple[Path, int, str]:
        while (ended := self.ended()) is None:
            time.sleep(POLL_SECONDS)
        return ended

    def ended(self) -> tuple[Path, int, str] | None:
        """As `wait`, or None when none has ended yet."""
        for folder, process in self.running.items():
            if (status := process.poll()) is not None:
                del self.running[folder]
                lines = log_of(folder).read_text(encoding="utf-8", errors="replace").strip().splitlines()
                return folder, status, "\n".join(lines[-LOG_TAIL_LINES:])
        return None

    def ask_to_stop(self, folder: Path) -> None:
        """SIGTERM to the program that writes `folder`; `wait` returns it once it has ended."""
        self.running[folder].terminate()

    def stop(self) -> None:
        for process in self.running.values():
            process.terminate()
        limit = time.monotonic() + GRACE_SECONDS
        for process in self.running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=max(0.0, limit - time.monotonic()))
            process.kill()
            process.wait()
        self.running.clear()


def log_of(folder: Path) -> Path:
    """Of the run in `folder`; outside of it, because a run that starts again empties its folder."""
    return folder.parent / ".logs" / f"{folder.name}.log"


def call(command: Sequence[str]) -> int:
    """Run a program on this terminal. An interruption or SIGTERM is passed on and its orderly end waited for."""
    with sigterm_as_exit(), subprocess.Popen(command) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # A terminal has interrupted the program as well; give it time to write its checkpoint.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE_SECONDS)
            raise
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=GRACE_SECONDS)
                process.kill()


@contextlib.contextmanager
def sigterm_as_exit() -> Iterator[None]:
    """SIGTERM becomes SystemExit, so that running programs are ended in order."""
    previous = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _terminated(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)
