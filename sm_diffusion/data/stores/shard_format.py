"""Prepared shards on disk: raw little-endian token ids, a sidecar each, and one manifest.

A folder `prepared/<name>-<key>/` holds `train-00000.bin`, ... (windows of L ids, uint16 or int32, nothing else), a
`train-00000.json` beside each, and `manifest.json`, which is written last: with it the folder is complete. All of it
is a function of the files, the settings and the tokenizer, so two preparations agree byte for byte.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sm_diffusion.data.stores.arrow_cache import CacheMeta, SplitMeta, TokenCache
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.files import read_json, sha256_of
from sm_diffusion.types import UserError

FORMAT = 1
MAX_OPEN = 512


@dataclass(frozen=True)
class ShardMeta:
    """One shard. part: file, start, stop, first, last of its slice. refused: records left out, by reason."""

    name: str
    split: str
    part: list[Any]
    sha256: str
    file_bytes: int
    sequences: int
    documents: int
    tokens: int
    text_bytes: int
    refused: dict[str, int]


@dataclass(frozen=True)
class Manifest:
    """source: fingerprint of the corpus; settings: what it was made of, the hub's commit among it."""

    format: int
    key: str
    length: int
    vocab_size: int
    mask_id: int
    eos_id: int
    dtype: str
    tokenizer: str
    source: str
    settings: dict[str, Any]
    totals: dict[str, dict[str, Any]]
    shards: list[ShardMeta]


class ShardTable:
    """The sequences of several shards, memory-mapped as they are read. Pickles as its paths."""

    def __init__(self, *, paths: Sequence[Path], sequences: Sequence[int], length: int, dtype: str) -> None:
        self.length = length
        self._paths = list(paths)
        self._sequences = list(sequences)
        self._dtype = dtype
        self._ends = np.cumsum(self._sequences, dtype=np.int64)
        self._open: dict[int, NDArray[np.integer]] = {}

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._sequences else 0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_open": {}}

    def rows(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Sequences `indices` as a new int64 array of shape (len(indices), L)."""
        out = np.empty((len(indices), self.length), dtype=np.int64)
        for place, index in enumerate(indices):
            assert 0 <= index < len(self), f"sequence {index} of {len(self)}"
            shard = int(np.searchsorted(self._ends, index, side="right"))
            out[place] = self._shard(shard)[index - int(self._ends[shard])]
        return out

    def _shard(self, number: int) -> NDArray[np.integer]:
        if number not in self._open:
            if len(self._open) >= MAX_OPEN:  # open files are limited
                self._open.pop(next(iter(self._open)))
            shape = (self._sequences[number], self.length)
            self._open[number] = np.memmap(self._paths[number], dtype=self._dtype, mode="r", shape=shape)
        return self._open[number]


def dtype_of(vocab_size: int) -> str:
    """Little-endian on every machine."""
    return "<u2" if vocab_size <= 2**16 else "<i4"


def as_json(value: Any) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"


def read_sidecar(folder: Path, name: str) -> ShardMeta | None:
    """The shard's record if shard and record are there with the right size, else None."""
    try:
        meta = ShardMeta(**read_json(folder / f"{name}.json"))
        return meta if (folder / f"{name}.bin").stat().st_size == meta.file_bytes else None
    except (OSError, ValueError, TypeError):
        return None


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest, or None while the folder is incomplete."""
    try:
        fields = read_json(folder / "manifest.json")
        return Manifest(**{**fields, "shards": [ShardMeta(**shard) for shard in fields["shards"]]})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def totals(shards: Sequence[ShardMeta]) -> dict[str, dict[str, Any]]:
    """Counts of every split."""
    result: dict[str, dict[str, Any]] = {}
    for shard in shards:
        counts = result.setdefault(
            shard.split,
            dict.fromkeys(("documents", "tokens", "text_bytes", "sequences", "file_bytes"), 0) | {"refused": {}},
        )
        for name in ("documents", "tokens", "text_bytes", "sequences", "file_bytes"):
            counts[name] += vars(shard)[name]
        for reason, number in shard.refused.items():
            counts["refused"][reason] = counts["refused"].get(reason, 0) + number
    return result


def damaged(folder: Path, manifest: Manifest, *, deep: bool) -> list[tuple[ShardMeta, str]]:
    """Shards that are not as the manifest says, and how. deep: their bytes too, not only that they are there."""
    found = []
    for shard in manifest.shards:
        path = folder / f"{shard.name}.bin"
        if not path.is_file():
            found.append((shard, "is missing"))
        elif path.stat().st_size != shard.file_bytes:
            found.append((shard, f"has {path.stat().st_size:,} bytes instead of {shard.file_bytes:,}"))
        elif deep and sha256_of(path) != shard.sha256:
            found.append((shard, "does not have the checksum of the manifest"))
        elif deep and read_sidecar(folder, shard.name) != shard:
            found.append((shard, "has no sidecar that agrees with the manifest"))
    return found


def open_shards(folder: Path, manifest: Manifest) -> TokenCache:
    """Train and validation tables of a complete folder."""
    tables = {}
    for split in ("train", "validation"):
        shards = [shard for shard in manifest.shards if shard.split == split and shard.sequences]
        tables[split] = ShardTable(
            paths=[folder / f"{shard.name}.bin" for shard in shards],
            sequences=[shard.sequences for shard in shards],
            length=manifest.length,
            dtype=manifest.dtype,
        )
    splits = {}
    for split, counts in manifest.totals.items():
        numbers = {name: value for name, value in counts.items() if name != "refused"}
        splits[split] = SplitMeta(empty_documents=counts["refused"].get("empty", 0), **numbers)
    meta = CacheMeta(
        key=manifest.key,
        length=manifest.length,
        vocab_size=manifest.vocab_size,
        mask_id=manifest.mask_id,
        eos_id=manifest.eos_id,
        source=manifest.source,
        tokenizer=manifest.tokenizer,
        splits=splits,
        versions={},
    )
    return TokenCache(meta=meta, **tables)


def open_prepared(path: str, *, tokenizer: TextTokenizer, length: int) -> TokenCache:
    """A folder that `smd prepare` completed, perhaps elsewhere; the raw files are not needed.

    Errors: UserError if it is incomplete or damaged, or was made with another tokenizer or length.
    """
    folder = Path(path).expanduser()
    manifest = read_manifest(folder)
    if manifest is None:
        raise UserError(f"data.prepared={path}: no manifest.json: finish it with `smd prepare`, or name its folder")
    if manifest.tokenizer != tokenizer.fingerprint():
        raise UserError(
            f"data.prepared={path}: the tokenizer does not match: the shards hold ids of {manifest.tokenizer[:12]} "
            f"(vocabulary {manifest.vocab_size}), data.tokenizer is {tokenizer.fingerprint()[:12]} (vocabulary "
            f"{tokenizer.vocab_size}): set data.tokenizer to theirs, or prepare again"
        )
    if manifest.length != length:
        raise UserError(f"data.length={length}: data.prepared={path} holds sequences of {manifest.length}: set it so")
    for shard, what in damaged(folder, manifest, deep=False):
        raise UserError(f"{folder / shard.name}.bin {what}: repair it with `smd prepare data=... --verify`")
    return open_shards(folder, manifest)


def manifest_json(manifest: Manifest) -> str:
    return as_json(asdict(manifest))
