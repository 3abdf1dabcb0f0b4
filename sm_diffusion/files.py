"""Files and folders that are whole or absent, JSON, digests: the only place of the package that writes and renames.

A file is filled under a hidden name beside its own, flushed to disk and renamed, so that a reader sees the old content
or the whole new one, whatever kills the writer. What the system says against it becomes one line that names the file.

    OSError as it comes     replacing, move, swap, sync, delete: for callers with an explanation of their own
    UserError               write_whole, write_text, write_json, staged, KeyedFolder; read_text, read_json, sha256_of

JSON has no NaN and no infinity: `write_json` spells them "nan", "inf" and "-inf", which every JSON reader can read.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import numbers
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sm_diffusion.types import UserError

_NOT_SYNCED = frozenset({"EINVAL", "ENOTSUP", "EOPNOTSUPP", "EACCES"})  # folders of some network file systems
_RUST_ERROR = re.compile(r"\(os error (\d+)\)")

# ------------------------------------------------------------------------------------------------------ whole or absent


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """A new hidden name beside `path` to write one file to; at the end it replaces `path`, on an error it is deleted.

    Args:
        path: The file, in a folder that is there.
        durable: Flush the content and the folder to disk, so that a power cut loses nothing either.

    Raises:
        OSError: What the system said; `path` is as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)


def remove_temporary(folder: Path) -> None:
    """Delete what killed `replacing` blocks left in a folder and those below it, where no other process writes."""
    for stale in folder.rglob(".*.tmp"):
        stale.unlink(missing_ok=True)


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Have `write` fill a file beside `path`, then give it its name. Missing folders are made.

    Raises:
        UserError: The file, and why it cannot be written (disk full, no permission, read-only); the old one survives.
    """
    with cannot_write(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            write(temporary)
    return path


def write_text(path: Path, text: str) -> Path:
    """UTF-8, as `write_whole`. Halves of a surrogate pair, which UTF-8 has not, are spelt `\\udXXX`."""
    return write_whole(path, lambda temporary: temporary.write_bytes(encode(text)))


def encode(text: str) -> bytes:
    """UTF-8 with lone surrogates spelt `\\udXXX`, which inside JSON is what they are."""
    return text.encode("utf-8", "backslashreplace")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A new place beside `out` to write a file or a folder to. It is renamed to `out` at the end, deleted on error.

    Raises:
        UserError: `out`, and why it cannot be written.
    """
    part = out.parent / f".{out.name}.part{out.suffix}"
    with cannot_write(out, within=part):
        out.parent.mkdir(parents=True, exist_ok=True)
        delete(part)
        try:
            yield part
            sync_tree(part)
            if out.is_dir():  # an empty one: callers refuse others
                out.rmdir()
            move(part, out)
        finally:
            with contextlib.suppress(OSError):
                delete(part)


def move(source: Path, target: Path) -> None:
    """Rename within a file system, over a file if there is one, on disk when this returns."""
    os.replace(source, target)
    sync(target.parent)


def swap(new: Path, path: Path, *, aside: Path) -> None:
    """Put a finished `new` in the place of `path`, file or folder; whatever was there waits as `aside`, then goes.

    A folder cannot replace a folder in one step: a kill between the two renames leaves only `aside` and `new`.
    """
    delete(aside)
    if path.exists():
        os.replace(path, aside)
    move(new, path)
    delete(aside)


def delete(path: Path) -> None:
    """A file, a link or a whole folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file's content, or a folder's list of names, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and errno_name(error) in _NOT_SYNCED):
            raise
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """`sync` a file, or a folder and all that it holds."""
    for inner in path.rglob("*") if path.is_dir() else ():
        if not inner.is_symlink():
            sync(inner)
    sync(path)


# ------------------------------------------------------------------------------------------------- errors of the system


def errno_name(error: OSError) -> str:
    """ENOSPC and the like; "" where it has none."""
    return errno.errorcode.get(error.errno or 0, "")


def os_error(error: BaseException) -> OSError | None:
    """The system's error behind an exception of a library that wrote a file; None where there is none.

    torch raises RuntimeError while it handles the OSError; packages in Rust (safetensors, tokenizers) only quote it.
    """
    if isinstance(error, OSError):
        return error
    if isinstance(error, UserError):
        return None
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__
    quoted = _RUST_ERROR.search(str(error))
    return OSError(int(quoted[1]), os.strerror(int(quoted[1]))) if quoted else None


@contextmanager
def cannot_write(path: Path, *, within: Path | None = None) -> Iterator[None]:
    """Turns what the system says against writing `path` into a UserError.

    within: only what concerns this file or folder, or room on the disk; other errors, of files read meanwhile, pass.
    """
    try:
        yield
    except Exception as error:
        found = os_error(error)
        if found is None or (within is not None and not _concerns(found, within, path)):
            raise
        reason = found.strerror or str(found) or type(found).__name__
        raise UserError(f"{path}: cannot be written ({reason}); free space or choose another folder") from None


def _concerns(error: OSError, *places: Path) -> bool:
    if errno_name(error) in ("ENOSPC", "EDQUOT", "EROFS", "EFBIG"):
        return True
    if error.filename is None:
        return False
    named = Path(os.fsdecode(error.filename))
    return any(named == place or place in named.parents or named in place.parents for place in places)


# ---------------------------------------------------------------------------------------------------------------- JSON


def read_text(path: Path, *, what: str = "UTF-8 text", advice: str = "write it again or use another") -> str:
    """The text of a file of UTF-8.

    Raises:
        UserError: It is missing, cannot be read, is no regular file (a pipe would wait forever) or no UTF-8.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: not a file; {advice}")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file and its rights") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not {what} ({error}); {advice}") from None


def read_json(path: Path, *, advice: str = "write it again or use another") -> Any:
    """The content of a JSON file, anyone's.

    Args:
        advice: What to do about a broken one, for the message.

    Raises:
        UserError: It is missing or broken, in whatever way.
    """
    return parse_json(read_text(path, what="JSON", advice=advice), path, advice=advice)


def read_object(path: Path, *, advice: str = "write it again or use another") -> dict[str, Any]:
    """As `read_json`, of a file that must hold a JSON object."""
    found = read_json(path, advice=advice)
    if not isinstance(found, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(found).__name__}; {advice}")
    return found


def parse_json(text: str | bytes, source: object, *, advice: str = "write it again or use another") -> Any:
    """Decoded JSON; UserError naming `source` for any text that is none, is nested too deep or counts too far."""
    try:
        return json.loads(text)
    except RecursionError:
        reason = "nested too deep"
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in error.doc.strip() else ""
        reason = f"{error.msg} at {line}column {error.colno}"
    except ValueError as error:  # no UTF-8, or an integer of more digits than Python converts
        reason = str(error).partition(";")[0]
    raise UserError(f"{source}: not JSON ({reason}); {advice}")


def write_json(path: Path, obj: Any) -> Path:
    """Write `obj` as strict JSON, whole or not at all.

    Args:
        obj: Containers, strings, numbers (of numpy too) and paths. Numbers that are not finite become strings.

    Raises:
        UserError: The file cannot be written; the old one survives.
        TypeError: `obj` holds something else.
    """
    return write_text(path, json.dumps(_plain(obj), indent=2, allow_nan=False) + "\n")


def _plain(obj: Any) -> Any:
    if obj is None or isinstance(obj, bool | int | str):
        return obj
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    if isinstance(obj, Path):
        return str(obj)
    if isinstance(obj, numbers.Integral):
        return int(obj)
    if isinstance(obj, numbers.Real):
        value = float(obj)
        return value if math.isfinite(value) else str(value)
    raise TypeError(f"cannot be written as JSON: {type(obj).__name__}")


# ------------------------------------------------------------------------------------------------------------- digests


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content; UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the file and its rights") from None


def digest(*parts: str | bytes) -> str:
    """Hex sha256 of the parts one after the other, text as UTF-8."""
    return digest_bytes(*parts).hex()


def digest_bytes(*parts: str | bytes) -> bytes:
    """As `digest`, the 32 bytes themselves."""
    found = hashlib.sha256()
    for part in parts:
        found.update(encode(part) if isinstance(part, str) else part)
    return found.digest()


def key_digest(key: Mapping[str, Any]) -> str:
    """Hex digest of a key's content, whatever the order of its entries."""
    return digest(json.dumps(key, sort_keys=True))


# ------------------------------------------------------------------------------------------------------- keyed folders


class KeyedFolder:
    """A folder of JSON lines that survives a kill: whole lines only, a file a rank, one key that says what they are.

    Args:
        folder: Made if need be.
        key: Everything that decides the lines; a folder with another key is refused.
        setting: Name of the user's setting that chose the folder, for the message.
        what: Plural noun of what is kept, which also names the file of the key (`<what>.json`).

    Raises:
        UserError: The folder holds something else, or cannot be written.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], *, setting: str, what: str) -> None:
        self.folder = folder
        self.key = json.loads(json.dumps(key))
        path = folder / f"{what}.json"
        if not path.exists():
            write_json(path, self.key)
            return
        found = read_json(path, advice="delete it to have it made again")
        if found == self.key:
            return
        theirs, ours = flat(found if isinstance(found, dict) else {}), flat(self.key)
        name = next((name for name in [*ours, *theirs] if theirs.get(name) != ours.get(name)), "key")
        there, here = (str(side.get(name))[:12] for side in (theirs, ours))
        other = "another checkpoint" if name == "checkpoint_sha256" else f"another {name}"
        raise UserError(
            f"{setting}={folder}: holds {what} of {other} ({there} there, {here} here); "
            "choose another folder, or delete this one"
        )

    def lines(self, stem: str) -> Iterator[dict[str, Any]]:
        """Of every rank's file of that stem. A line cut off by a kill does not count."""
        for path in sorted(self.folder.glob(f"{stem}-*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:  # the last piece is empty, or torn
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                if not isinstance(row, dict):
                    raise UserError(f"{path}: damaged; delete it to have its {stem}s made again")
                yield row

    def append(self, stem: str, rows: Sequence[Mapping[str, Any]], *, rank: int) -> None:
        """Add whole lines to this rank's file, on disk when this returns; a torn end is cut off first."""
        path = self.folder / f"{stem}-{rank:05d}.jsonl"
        with cannot_write(path), path.open("ab+") as file:
            _cut_torn_line(file)
            file.write(encode("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)))
            file.flush()
            os.fsync(file.fileno())


def _cut_torn_line(file: Any) -> None:
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)


def flat(key: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"sampler": {"eta": 1}} as {"sampler.eta": 1}."""
    out: dict[str, Any] = {}
    for name, value in key.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return out
