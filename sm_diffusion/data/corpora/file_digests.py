"""Digests of local files: what a cache made of them is named by. A file is read once, and again when it changed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock

from sm_diffusion.data.stores.cache import Progress, denied_as_user_error
from sm_diffusion.files import digest, encode, read_json, replacing, sha256_of

MAX_THREADS = 8
Stamp = list[int]  # size, time of change of the content, time of change of the file (which copying tools cannot set)


def digest_files(folder: Path, names: Sequence[str], cache_dir: Path | None) -> list[str]:
    """sha256 of every file of a folder, in order.

    cache_dir: remembers digests by place, size and times of change; None: nothing is kept.

    Errors: UserError for a file that cannot be read or a cache_dir that cannot be written.
    """
    paths = [folder / name for name in names]
    if cache_dir is None:
        return _digests(paths, {})[0]
    place = digest(str(folder))[:24]
    note = cache_dir / "local" / f"{place}.json"
    with denied_as_user_error(cache_dir):
        note.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{note}.lock"):  # of many ranks one reads
            known = _read(note)
            digests, fresh = _digests(paths, known)
            if fresh:
                with replacing(note) as part:
                    part.write_bytes(encode(json.dumps(known | fresh)))
    return digests


def _read(note: Path) -> dict[str, tuple[Stamp, str]]:
    try:
        stored = read_json(note)
        return {str(name): (list(stamp), str(digest)) for name, (stamp, digest) in stored.items()}
    except (ValueError, TypeError, AttributeError):  # UserError among them
        return {}  # none yet, or torn: the files are read again


def _digests(
    paths: Sequence[Path], known: dict[str, tuple[Stamp, str]]
) -> tuple[list[str], dict[str, tuple[Stamp, str]]]:
    """(digest of each file, what was not known before)."""
    stamps = [_stamp(path) for path in paths]
    stale = [number for number, path in enumerate(paths) if known.get(str(path), ([], ""))[0] != stamps[number]]
    total, progress, done = sum(stamps[number][0] for number in stale), Progress(), 0
    fresh: dict[str, tuple[Stamp, str]] = {}
    with ThreadPoolExecutor(MAX_THREADS) if len(stale) > 1 else nullcontext() as pool:
        found = (pool.map if pool else map)(sha256_of, [paths[number] for number in stale])
        for number, digest in zip(stale, found, strict=True):
            fresh[str(paths[number])] = (stamps[number], digest)
            done += stamps[number][0]
            progress.tell(f"reading {paths[number].parent}: {done / 1e9:.2f} of {total / 1e9:.2f} GB")
    everything = known | fresh
    return [everything[str(path)][1] for path in paths], fresh


def _stamp(path: Path) -> Stamp:
    state = path.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]
