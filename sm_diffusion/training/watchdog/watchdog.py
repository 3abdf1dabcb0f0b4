"""Ends a run of several processes when one of them hangs, died or raised, with one line that names it.

A thread of every rank writes its beat (see heartbeat.py). A rank whose main thread neither finishes a batch nor enters
a collective for `timeout_seconds` looks at the beats of the others, says which rank all wait for, and ends. The limit
of the process group itself is longer: NCCL would abort the process before it could say anything.
"""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher as ScriptLauncher

from sm_diffusion.interrupts import started_by_lightning
from sm_diffusion.training.watchdog import heartbeat
from sm_diffusion.types import UserError

VERDICT = "verdict.txt"
_LOST = ("connection closed by peer", "connection reset", "timed out", "watchdog", "nccl", "broken pipe", "gloo")


def group_timeout(timeout_seconds: float) -> float:
    """Seconds after which torch itself gives up on a collective, or on a process that does not start."""
    return timeout_seconds + 300


class Watchdog(Callback):
    """folder: where ranks write their beats; all machines must see it. Does nothing in a run of one process."""

    def __init__(self, *, folder: Path, checkpoint: Path, timeout_seconds: float) -> None:
        self.folder = folder
        self.checkpoint = checkpoint
        self.timeout_seconds = timeout_seconds
        self.interval = min(5.0, timeout_seconds / 10)
        heartbeat.record_collectives()
        self.rank, self.world_size = 0, 1
        self._children: list[subprocess.Popen[bytes]] = []
        self._batches = self._step = 0
        self._ended: str | None = None
        self._lock = threading.Lock()  # held by whoever ends the run
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    # ----------------------------------------------------------------------------------------- what Lightning calls

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.world_size == 1 or self._thread is not None:
            return
        self.rank, self.world_size = trainer.global_rank, trainer.world_size
        launcher = trainer.strategy.launcher
        if isinstance(launcher, ScriptLauncher):
            # From here on this thread watches them: Lightning's own, which has been given this list, would kill
            # this process within 5 seconds, often before it could say what happened.
            self._children = list(launcher.procs)
            launcher.procs.clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._write()  # so that a rank that dies at once was known to be there
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches, self._step = self._batches + 1, trainer.global_step

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._batches += 1

    # --------------------------------------------------------------------------------------- what the program calls

    def close(self, error: BaseException | None = None) -> UserError | SystemExit | None:
        """The program of this rank has ended. Returns what to end with in place of an `error` of another rank."""
        with self._lock:
            self._closed.set()
            if self._thread is None:
                if isinstance(error, dist.DistStoreError) and "clients joined" in str(error):
                    return UserError(f"a process of the run did not start; see its output ({error})")
                return None
            if error is None:
                if self._thread.is_alive():  # it may be writing its last beat
                    self._thread.join(timeout=2 * self.interval)
                with suppress(OSError):  # the last rank removes the folder
                    heartbeat.beat_file(self.folder, self.rank).unlink(missing_ok=True)
                    self.folder.rmdir()
                return None
            caused_elsewhere = isinstance(error, RuntimeError) and any(part in str(error).lower() for part in _LOST)
            if not caused_elsewhere:
                if not isinstance(error, SystemExit | KeyboardInterrupt):
                    first = (str(error).splitlines() or [""])[0][:160]
                    self._ended = f"{type(error).__name__}: {first}"
                    self._write()
                    if self.rank == 0:
                        self._claim(str(error))  # it speaks for itself: the others leave in silence
                return None
            self._write()
            text = self._explain(error)
            ended = UserError(text) if self._claim(text) else SystemExit(self._status())
            self._kill_children(after_seconds=10)  # one that raised is still printing why
            return ended

    # --------------------------------------------------------------------------------------------------- the thread

    def _watch(self) -> None:
        seen: tuple[int, ...] = ()
        since = time.monotonic()
        while not self._closed.wait(self.interval):
            mark = self._write()
            if mark != seen:
                seen, since = mark, time.monotonic()
            stalled = time.monotonic() - since > self.timeout_seconds
            lost_child = any(child.poll() for child in self._children)
            # The main thread usually learns of a lost process, too, and ends in a better way than from here.
            if stalled or (lost_child and not self._closed.wait(3)):
                self._end(f"no progress for {self.timeout_seconds:g} s" if stalled else None)

    def _write(self) -> tuple[int, ...]:
        """Write this rank's beat; returns what changes as long as there is progress."""
        seen = heartbeat.entered_collectives()
        beat = heartbeat.Beat(
            rank=self.rank,
            host=platform.node(),
            pid=os.getpid(),
            written=time.time(),
            step=self._step,
            place=heartbeat.main_thread_place(),
            collectives=seen.entered,
            last=seen.last,
            ended=self._ended,
        )
        with suppress(OSError):  # a full disk is reported by what has to be written, not by this
            heartbeat.write_beat(self.folder, beat)
        return self._batches, self._step, seen.entered

    def _end(self, reason: str | None) -> None:
        """End this process from the thread: its main thread cannot, it hangs."""
        if reason is not None:  # all ranks stall together: the lowest one speaks
            time.sleep(min(2 * self.interval * (self.rank > 0) + self.interval, 30))
            self._write()
        with self._lock:
            if self._closed.is_set():
                return
            text = self._explain(None, reason)
            if self._claim(text):
                print(f"error: {text}", file=sys.stderr, flush=True)
            self._kill_children()
            os._exit(self._status())

    def _explain(self, error: BaseException | None, reason: str | None = None) -> str:
        """One line: who is to blame, and where to go on from."""
        found: str | None = None
        deadline = time.monotonic() + (6 * self.interval if error is not None else self.interval)
        while True:
            statuses = {index: child.poll() or 0 for index, child in enumerate(self._children, start=self.rank + 1)}
            beats = heartbeat.read_beats(self.folder, range(self.world_size))
            ended = heartbeat.ended_ranks(beats, statuses, host=platform.node())
            found = heartbeat.conclude(
                beats,
                world_size=self.world_size,
                ended={rank: how for rank, how in ended.items() if rank != self.rank},
                stale_seconds=max(5.0, 5 * self.interval),
                folder=self.folder,
            )
            # A lost connection comes before the beat that explains it: do not blame a rank that is merely behind.
            if ended or time.monotonic() > deadline or (error is None and found is not None):
                break
            time.sleep(min(0.2, self.interval))
        if found is None:
            first = next((line for line in str(error or "").splitlines() if line.strip()), "")[:160]
            found = f"rank {self.rank}: a collective failed or hangs, and no rank is behind ({first or reason})"
        elif reason is not None:
            found = f"{found} ({reason}: strategy.timeout_seconds)"
        last = f"the last good checkpoint is {self.checkpoint}" if self.checkpoint.exists() else "no checkpoint yet"
        return f"{found}; {last}; continue with ckpt_path=auto"

    def _claim(self, text: str) -> bool:
        """Whether this rank is the one that speaks: the first to write the verdict."""
        try:
            with (self.folder / VERDICT).open("x", encoding="utf-8") as file:
                file.write(text + "\n")
        except FileExistsError:
            return False
        except OSError:
            return self.rank == 0
        return True

    def _kill_children(self, *, after_seconds: float = 0) -> None:
        deadline = time.monotonic() + after_seconds
        for child in self._children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=max(0.0, deadline - time.monotonic()))
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)

    def _status(self) -> int:
        return 0 if started_by_lightning() else 2
