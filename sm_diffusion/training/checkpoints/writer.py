"""Writes checkpoints while training goes on: one thread, one save at a time, in the order they were asked for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable


class Writer:
    """Runs jobs at once (background=False), or in a thread.

    In a thread at most one save waits: `save` blocks until the one before is on the disk, so that memory holds one
    snapshot. What a job raises is raised by the next call of `save` or `wait`; the jobs behind it are dropped, so that
    nothing is removed for the sake of a checkpoint that was not written.
    """

    def __init__(self, *, background: bool) -> None:
        self.background = background
        self._jobs: deque[Callable[[], None]] = deque()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def save(self, job: Callable[[], None]) -> None:
        """Do `job`, which writes a snapshot that nobody changes."""
        self.wait()
        self._start(job)

    def after(self, job: Callable[[], None]) -> None:
        """Do `job` once all saves before it are on the disk, such as removing an older checkpoint."""
        self._start(job)

    def wait(self) -> None:
        """Until everything is on the disk; raises what went wrong."""
        self.finish()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def finish(self) -> None:
        """Until no job is left; what went wrong is kept for `wait`."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _start(self, job: Callable[[], None]) -> None:
        if not self.background:
            job()
            return
        with self._lock:
            self._jobs.append(job)
            if self._thread is None:
                # Not a daemon: the program does not end before its last checkpoint is written.
                self._thread = threading.Thread(target=self._work, name="checkpoint-writer")
                self._thread.start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs or self._error is not None:
                    self._jobs.clear()
                    self._thread = None
                    return
                job = self._jobs.popleft()
            try:
                job()
            except BaseException as error:
                self._error = error
