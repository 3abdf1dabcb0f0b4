"""Files that are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from sm_diffusion.types import UserError


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Have `write` fill a file beside `path`, then give it its name. UserError names a file that cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space or choose another folder") from None
    return path


def write_text(path: Path, text: str) -> Path:
    return write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
