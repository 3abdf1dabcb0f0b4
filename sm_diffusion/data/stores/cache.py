"""Folders that are built once, appear whole or not at all, and survive crashes, full disks and other processes."""

from __future__ import annotations

import errno
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sm_diffusion import files
from sm_diffusion.types import UserError

NOTICE_SECONDS = 5.0
_FULL = {errno.ENOSPC, errno.EDQUOT}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


def build_once(folder: Path, *, build: Callable[[Path], None], check: Callable[[Path], str | None]) -> None:
    """Makes sure that `folder` holds what `build` writes, building it at most once among all processes.

    build: writes its files into the empty folder that it is given.
    check: None for a whole folder, else what is wrong with it. A damaged folder is built again, with a warning.

    One process builds, under a lock that the kernel drops when its holder dies; others wait, then find the result.
    The result is written beside its place, flushed to disk and renamed, so a folder of that name is always whole;
    what a killed build left is removed by the next builder. An earlier folder stays until its successor is complete.

    Errors: UserError if the place cannot be written or the disk is full; then nothing of the build is left.
    """
    if folder.is_dir() and check(folder) is None:
        return
    with denied_as_user_error(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(folder) + ".lock")
        _acquire(lock, folder)
    try:
        for stale in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(stale, ignore_errors=True)
        if folder.is_dir():
            problem = check(folder)
            if problem is None:
                return
            warnings.warn(f"{folder}: damaged cache ({problem}), building it again", stacklevel=2)
        _build(folder, build)
    finally:
        lock.release()


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    with denied_as_user_error(folder.parent):
        work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    new, old = work / "new", work / "old"
    try:
        new.mkdir()
        build(new)
        files.sync_tree(new)
        files.swap(new, folder, aside=old)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        written = sum(path.stat().st_size for path in work.rglob("*") if path.is_file() and not path.is_symlink())
        shutil.rmtree(work, ignore_errors=True)
        raise disk_full(folder.parent, written) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def disk_full(folder: Path, written: int) -> UserError:
    """The error for a disk that filled up after `written` bytes of a build."""
    free = shutil.disk_usage(folder).free
    return UserError(
        f"data.cache_dir={folder}: the disk is full: the cache needs more than {written:,} bytes and {free:,} are "
        f"free; earlier caches are untouched: free some space or set data.cache_dir to a folder on another disk"
    )


@contextmanager
def denied_as_user_error(folder: Path) -> Iterator[None]:
    """Turns what the system says against writing into `folder` into a UserError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise disk_full(folder if folder.is_dir() else folder.parent, 0) from None
        if error.errno not in _DENIED:
            raise
        raise UserError(
            f"data.cache_dir={folder}: cannot be written ({error.strerror}): set data.cache_dir to a folder of yours"
        ) from None


def _acquire(lock: FileLock, folder: Path) -> None:
    """Waits for the lock, saying so once if that takes long."""
    told = False
    while True:
        try:
            lock.acquire(timeout=NOTICE_SECONDS)
            return
        except Timeout:
            if not told:
                print(f"waiting for another process that prepares {folder}", file=sys.stderr, flush=True)
                told = True


class Progress:
    """One line on stderr every `interval` seconds, none for work that ends before that."""

    def __init__(self, *, interval: float = NOTICE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = interval
        self._clock = clock
        self._start = self._last = clock()

    def tell(self, what: str) -> None:
        """Prints `what` and the seconds gone by, if it is time for a line."""
        now = self._clock()
        if now - self._last >= self._interval:
            self._last = now
            print(f"{what} ({now - self._start:.0f} s)", file=sys.stderr, flush=True)
