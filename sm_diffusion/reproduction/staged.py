"""Outputs appear under their name when they are whole: a killed command leaves nothing that looks finished."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A new place beside `out` to write a file or a folder to. It is renamed to `out` at the end, deleted on error."""
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.parent / f".{out.name}.part{out.suffix}"
    _delete(part)
    try:
        yield part
        if out.is_dir():  # an empty one: callers refuse others
            out.rmdir()
        part.rename(out)
    finally:
        _delete(part)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
