"""Checkpoints on disk: one file, or a folder of shards. A save that is killed leaves the one before it untouched.

A checkpoint is a tree of containers, numbers and tensors, the same tree under every strategy: full names, optimiser
states by the parameters' order. Sharded tensors are DTensors in it. So what is written under one strategy and number
of processes is read under any other.

    file    NAME.ckpt                torch.save of the tree with full tensors; the zip's CRC-32 is the checksum
    folder  NAME.ckpt/tree.pt        the tree with a `Ref` in place of every tensor
            NAME.ckpt/*.distcp       the tensors (torch distributed checkpoint), one file or more a rank
            NAME.ckpt/checksums.json CRC-32 and size of every other file

Both are written under a hidden name beside the target (.NAME.ckpt.partial) and then moved over it. A folder cannot
replace a folder in one step: the old one waits as .NAME.ckpt.old between two renames, and `recover` brings it back.
"""

from __future__ import annotations

import json
import pickle
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from sm_diffusion.files import delete, move, os_error, read_object, swap, sync
from sm_diffusion.training.checkpoints.gather import map_tensors
from sm_diffusion.types import UserError

PARTIAL, OLD, TRASH = ".partial", ".old", ".trash"
TREE, CHECKSUMS = "tree.pt", "checksums.json"
_REF = "__tensor__"


class TensorShape(NamedTuple):
    """Shape and dtype of a stored tensor that has not been read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def hidden(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}{suffix}")


def recover(folder: Path) -> list[str]:
    """Clean up what killed saves left behind; returns one line for each. Call in one process only, before a run."""
    done = []
    for path in sorted(folder.glob(".*")):
        if path.name.endswith(OLD):
            target = path.with_name(path.name.removeprefix(".").removesuffix(OLD))
            if target.exists():
                delete(path)
            else:
                move(path, target)
                done.append(f"{target}: the save that should have replaced it was interrupted; it is used again")
        elif path.name.endswith((PARTIAL, TRASH)):
            delete(path)
            if path.name.endswith(PARTIAL):
                done.append(f"{folder}: removed an unfinished save ({path.name})")
    return done


def exists(path: Path) -> bool:
    """Whether there is a checkpoint, or one that `recover` brings back."""
    return path.exists() or hidden(path, OLD).exists()


def remove(path: Path) -> None:
    """Delete a checkpoint; a kill in between leaves only a hidden name that `recover` deletes."""
    if path.exists():
        trash = hidden(path, TRASH)
        delete(trash)
        move(path, trash)
        delete(trash)


def could_not_write(path: Path, error: OSError) -> UserError:
    reason = error.strerror or str(error)
    kept = "the checkpoint before it is intact; " if exists(path) else ""
    return UserError(f"{path}: could not be written ({reason}); {kept}make room, then continue with ckpt_path=last")


def write_file(tree: Any, path: Path) -> None:
    """Write a tree of plain tensors as one file, atomically. UserError when the disk does not take it."""
    partial = hidden(path, PARTIAL)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        delete(partial)
        with partial.open("wb") as file:
            torch.save(tree, file)
        sync(partial)
        _publish(partial, path)
    except (OSError, RuntimeError) as error:
        cause = os_error(error)
        if cause is None:
            raise
        partial.unlink(missing_ok=True)
        raise could_not_write(path, cause) from None


def _publish(partial: Path, path: Path) -> None:
    """Put a finished `partial` in the place of `path`, each a file or a folder."""
    if partial.is_dir() or path.is_dir():
        swap(partial, path, aside=hidden(path, OLD))
    else:
        move(partial, path)


def write_folder(tree: Any, path: Path, *, rank: int, group: dist.ProcessGroup | None = None) -> None:
    """Write a tree with sharded tensors as a folder; all ranks call it. Atomic as `recover` completes it.

    group: for its collectives; None: the default one. UserError, on all ranks, when a disk does not take it.
    """
    partial, alone = hidden(path, PARTIAL), not dist.is_initialized()
    _together(path, lambda: _fresh_folder(partial), active=rank == 0, group=group)
    tensors: dict[str, Tensor] = {}

    def leaf(tensor: Tensor, key: str) -> Any:
        tensors[key] = tensor.detach()
        return {_REF: key}

    structure = map_tensors(tree, leaf)
    writer = dcp.FileSystemWriter(partial, single_file_per_rank=True, sync_files=True)  # type: ignore[attr-defined]
    try:
        dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=alone)  # type: ignore[attr-defined]
    except CheckpointException as error:
        failure = next(iter(error.failures.values()))[0]
        if not isinstance(failure, OSError):
            raise
        raise could_not_write(path, failure) from None
    _together(path, lambda: _complete_folder(structure, partial, path), active=rank == 0, group=group)


def _together(path: Path, work: Callable[[], None], *, active: bool, group: dist.ProcessGroup | None) -> None:
    """Do `work` on the active rank while the others wait; UserError on all of them when a disk refused it."""
    problem: str | None = None
    if active:
        try:
            work()
        except OSError as error:
            problem = str(could_not_write(path, error))
    if dist.is_initialized():
        problems: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(problems, problem, group)
        problem = next((found for found in problems if found is not None), None)
    if problem is not None:
        raise UserError(problem)


def _fresh_folder(folder: Path) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    delete(folder)
    folder.mkdir()


def _complete_folder(structure: Any, partial: Path, path: Path) -> None:
    """Add the tree and the checksums to the shards of `partial`, and move it to its place."""
    torch.save(structure, partial / TREE)
    sums = {file.name: checksum(file) for file in sorted(partial.iterdir())}
    (partial / CHECKSUMS).write_text(json.dumps(sums, indent=1), encoding="utf-8")
    for changed in (partial / TREE, partial / CHECKSUMS, partial):
        sync(changed)
    _publish(partial, path)


def checksum(path: Path) -> list[int]:
    """[CRC-32, bytes] of a file."""
    value = size = 0
    with path.open("rb") as file:
        while block := file.read(2**22):
            value, size = zlib.crc32(block, value), size + len(block)
    return [value, size]


def verify(path: Path) -> None:
    """UserError when a checkpoint is damaged or incomplete: every byte is read and compared with its checksum."""
    advice = "it is damaged; continue from another checkpoint of this folder, or copy it again"
    if path.is_dir():
        try:
            sums: dict[str, list[int]] = read_object(path / CHECKSUMS)
        except UserError:
            raise UserError(f"{path}: {CHECKSUMS} is missing or unreadable; {advice}") from None
        for name, expected in sums.items():
            if not (path / name).is_file() or checksum(path / name) != expected:
                raise UserError(f"{path}: {name} does not match its checksum; {advice}")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as error:  # zipfile raises many kinds on damaged headers
        raise UserError(f"{path}: not a readable checkpoint ({error}); {advice}") from None
    if bad is not None:
        raise UserError(f"{path}: {bad} does not match its checksum; {advice}")
    read(path, mmap=True)  # checksums do not cover the archive's headers; torch is stricter about them than zipfile


def read(path: Path, *, target: Callable[[str, TensorShape], Tensor] | None = None, mmap: bool = False) -> Any:
    """The tree of a checkpoint, file or folder, in this process.

    target: for a folder, the tensor to read a stored one into, by its dotted place; a DTensor gets its own part, and
            then all ranks must read together. None, or for a file: full CPU tensors.
    mmap:   map a file instead of reading it, for tensors that are copied elsewhere at once.
    """
    try:
        if path.is_dir():
            return _read_folder(path, target)
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(f"{path}: not a readable checkpoint ({reason}); copy it again or use another") from None


def shapes(path: Path) -> dict[str, TensorShape]:
    """Shape and dtype of every tensor of a folder, by its dotted place."""
    metadata = dcp.FileSystemReader(path).read_metadata().state_dict_metadata  # type: ignore[attr-defined]
    return {
        key: TensorShape(tuple(entry.size), entry.properties.dtype)
        for key, entry in metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }


def _read_folder(path: Path, target: Callable[[str, TensorShape], Tensor] | None) -> Any:
    found = shapes(path)
    make = target or (lambda _, stored: torch.empty(stored.shape, dtype=stored.dtype))
    tensors = {key: make(key, stored) for key, stored in found.items()}
    alone = target is None or not dist.is_initialized()
    dcp.load(tensors, storage_reader=dcp.FileSystemReader(path), no_dist=alone)  # type: ignore[attr-defined]

    def restored(node: Any) -> Any:
        if isinstance(node, dict):
            if set(node) == {_REF}:
                return tensors[node[_REF]]
            return {name: restored(value) for name, value in node.items()}
        if isinstance(node, (list, tuple)):
            items = [restored(value) for value in node]
            return items if isinstance(node, list) else tuple(items)
        return node

    return restored(torch.load(path / TREE, weights_only=True))


def consolidate(source: Path, target: Path) -> None:
    """One file out of a folder of shards, in one process; `denoisers.convert.read_weights` reads it."""
    verify(source)
    write_file(read(source), target)
