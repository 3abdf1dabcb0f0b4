"""Reads torch and Lightning checkpoints without running any of their code.

A checkpoint is a zip archive with one pickle and one file for each storage. The unpickler below knows tensors, dicts,
lists and numbers; every other class named by the pickle becomes an inert stand-in that ignores whatever it is given.
Storages are read when a tensor is asked for, so optimiser states that nobody wants cost no memory.
"""

from __future__ import annotations

import collections
import pickle
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sm_diffusion.types import UserError

_STORAGE_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
_PLAIN = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("builtins", "set"): set,
}


class Inert:
    """Stands for an object of a class this reader does not know; it keeps nothing and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...
    def __setstate__(self, _: Any) -> None: ...
    def __setitem__(self, _: Any, __: Any) -> None: ...
    def append(self, _: Any) -> None: ...
    def extend(self, _: Any) -> None: ...
    def add(self, _: Any) -> None: ...
    def __call__(self, *_: Any, **__: Any) -> Inert:
        return self

    def __hash__(self) -> int:
        return id(self)


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype
    num_elements: int


class LazyTensor(NamedTuple):
    """A tensor of the archive that has not been read yet."""

    archive: Archive
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def load(self) -> Tensor:
        """Read the tensor; UserError when the archive does not hold what the pickle claims."""
        flat = self.archive.storage(self.storage)
        end = self.offset + 1 + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=flat.dtype)
        if self.offset < 0 or min((0, *self.stride)) < 0 or end > flat.numel():
            raise UserError(f"{self.archive.path}: a tensor reaches past its storage; the checkpoint is damaged")
        return flat.as_strided(self.shape, self.stride, self.offset).clone()


class Archive:
    """An open checkpoint file."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.zip = zipfile.ZipFile(self.path)
        except FileNotFoundError:
            raise UserError(f"{path}: no such checkpoint") from None
        except (zipfile.BadZipFile, OSError) as error:
            raise UserError(
                f"{path}: not a readable checkpoint ({error}); it may be truncated: copy or save it again"
            ) from None
        pickles = [name for name in self.zip.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(pickles) != 1:
            raise UserError(f"{path}: not a torch checkpoint (it holds {len(pickles)} files data.pkl, expected 1)")
        self.root = pickles[0].removesuffix("data.pkl")

    def storage(self, storage: _Storage) -> Tensor:
        try:
            data = self.zip.read(f"{self.root}data/{storage.key}")
        except (KeyError, zipfile.BadZipFile, OSError, EOFError) as error:
            raise UserError(
                f"{self.path}: storage {storage.key} cannot be read ({error}); the file is damaged"
            ) from None
        return torch.frombuffer(bytearray(data), dtype=storage.dtype) if data else torch.empty(0, dtype=storage.dtype)

    def tree(self) -> Any:
        """The whole checkpoint as plain containers with `LazyTensor` leaves."""
        try:
            with self.zip.open(f"{self.root}data.pkl") as file:
                return _Unpickler(file, self).load()
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"{self.path}: the checkpoint's index cannot be read ({type(error).__name__}: {error})"
            ) from None


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any, archive: Archive) -> None:
        super().__init__(file)
        self.archive = archive

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return self._rebuild_tensor
        if module == "torch._utils" and name == "_rebuild_parameter":
            return _first
        return type(name, (Inert,), {})

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, num_elements = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise UserError(f"{self.archive.path}: unknown kind of stored object {kind!r}")
        return _Storage(str(key), dtype, int(num_elements))

    def _rebuild_tensor(self, storage: Any, offset: int, shape: Any, stride: Any, *_: Any) -> Any:
        if not isinstance(storage, _Storage):
            return Inert()
        return LazyTensor(self.archive, storage, int(offset), tuple(shape), tuple(stride))


def _first(data: Any, *_: Any) -> Any:
    return data


def load_tensors(tree: Any) -> Any:
    """Read every `LazyTensor` below a node; containers keep their shape."""
    if isinstance(tree, LazyTensor):
        return tree.load()
    if isinstance(tree, dict):
        return {key: load_tensors(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return type(tree)(load_tensors(value) for value in tree)
    return tree
