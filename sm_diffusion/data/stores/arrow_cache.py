"""Tokenises a corpus once into a memory-mapped Arrow cache."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import datasets
import numpy as np
import pyarrow as pa
import tokenizers
from datasets.arrow_writer import ArrowWriter
from numpy.typing import NDArray

from sm_diffusion.data.corpora.base import Document, TokenSource
from sm_diffusion.data.stores.cache import Progress, build_once
from sm_diffusion.data.stores.packing import wrap_documents
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.files import digest, read_object
from sm_diffusion.types import UserError

FORMAT_VERSION = 1
SPLITS = ("train", "validation")
BATCH_DOCUMENTS = 1024
BATCH_CHARACTERS = 2**21


@dataclass(frozen=True)
class SplitMeta:
    """What one split holds.

    documents: non-empty documents.             empty_documents: documents left out, nothing remained of them.
    tokens: tokens, one EOS a document included, the dropped last window too.
    text_bytes: UTF-8 bytes of the normalised text, without the EOS.
    sequences: windows of `length` tokens.      file_bytes: size of the Arrow file.
    """

    documents: int
    empty_documents: int
    tokens: int
    text_bytes: int
    sequences: int
    file_bytes: int


@dataclass(frozen=True)
class CacheMeta:
    """The record kept beside a cache as meta.json.

    key: digest of the source, the tokenizer, the length and the format: the name of the folder.
    splits: 'train' and 'validation'.     versions: packages that wrote the cache.
    """

    key: str
    length: int
    vocab_size: int
    mask_id: int
    eos_id: int
    source: str
    tokenizer: str
    splits: dict[str, SplitMeta]
    versions: dict[str, str]


class SequenceTable(Protocol):
    """Sequences by number, as loaders read them. Pickles without its content."""

    length: int

    def __len__(self) -> int: ...

    def rows(self, indices: Sequence[int]) -> NDArray[np.int64]: ...


class TokenTable:
    """The sequences of one split, memory-mapped: opening costs no memory, and processes share the pages.

    path: Arrow file with one column `input_ids`, a fixed-size list. Pickles as its path.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        column = datasets.Dataset.from_file(str(path)).data.column("input_ids")
        self.length: int = column.type.list_size
        self._chunks: list[NDArray[np.integer]] = [
            chunk.flatten().to_numpy(zero_copy_only=True).reshape(-1, self.length) for chunk in column.chunks
        ]
        self._ends = np.cumsum([len(chunk) for chunk in self._chunks], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self._chunks else 0

    def __reduce__(self) -> tuple[type[TokenTable], tuple[Path]]:
        return TokenTable, (self._path,)

    def rows(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """Sequences `indices` as a new int64 array of shape (len(indices), L)."""
        out = np.empty((len(indices), self.length), dtype=np.int64)
        for place, index in enumerate(indices):
            assert 0 <= index < len(self), f"sequence {index} of {len(self)}"
            chunk = int(np.searchsorted(self._ends, index, side="right"))
            out[place] = self._chunks[chunk][index - int(self._ends[chunk])]  # a negative offset from the chunk's end
        return out


@dataclass(frozen=True)
class TokenCache:
    """A prepared corpus."""

    meta: CacheMeta
    train: SequenceTable
    validation: SequenceTable


def prepare_tokens(*, source: TokenSource, tokenizer: TextTokenizer, length: int, cache_dir: Path) -> TokenCache:
    """Opens the cache of (source, tokenizer, length) in `cache_dir`, building it first if need be (`build_once`).

    Errors: UserError for unusable text, a split that cannot fill one window, a folder that cannot be written, a full
    disk. A damaged cache is built again with a warning.
    """
    if length < 1:
        raise UserError(f"data.length={length}: must be at least 1 token")
    prints = (source.fingerprint(), tokenizer.fingerprint())
    key = digest(json.dumps([FORMAT_VERSION, *prints, length]))[:24]
    folder = cache_dir / f"tokens-{key}"
    seed = CacheMeta(
        key=key,
        length=length,
        vocab_size=tokenizer.vocab_size,
        mask_id=tokenizer.mask_id,
        eos_id=tokenizer.eos_id,
        source=prints[0],
        tokenizer=prints[1],
        splits={},
        versions={"datasets": datasets.__version__, "pyarrow": pa.__version__, "tokenizers": tokenizers.__version__},
    )
    build_once(folder, build=lambda new: _build(new, source, tokenizer, seed), check=_damage)
    tables = {split: TokenTable(folder / f"{split}.arrow") for split in SPLITS}
    return TokenCache(meta=read_meta(folder), **tables)


def read_meta(folder: Path) -> CacheMeta:
    """The meta.json of a cache folder."""
    fields: dict[str, Any] = read_object(folder / "meta.json")
    splits = {split: SplitMeta(**counts) for split, counts in fields.pop("splits").items()}
    return CacheMeta(splits=splits, **fields)


def _damage(folder: Path) -> str | None:
    """What is wrong with a cache folder, or None."""
    try:
        meta = read_meta(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"meta.json: {error}"
    for split in SPLITS:
        path = folder / f"{split}.arrow"
        if not path.is_file():
            return f"{path.name} is missing"
        if split not in meta.splits:
            return f"meta.json: no {split}"
        expected, size = meta.splits[split].file_bytes, path.stat().st_size
        if size != expected:
            return f"{path.name} has {size} bytes instead of {expected}"
        try:
            table = TokenTable(path)
        except (OSError, ValueError, KeyError) as error:  # pyarrow's own errors are among these
            return f"{path.name}: {error}"
        if (len(table), table.length) != (meta.splits[split].sequences, meta.length):
            return f"{path.name} holds {len(table)} sequences of {table.length} tokens"
    return None


def _build(folder: Path, source: TokenSource, tokenizer: TextTokenizer, seed: CacheMeta) -> None:
    progress = Progress()
    splits = {}
    for split, documents in (("train", source.train()), ("validation", source.validation())):
        counts = _Counts(split, tokenizer, progress)
        path = folder / f"{split}.arrow"
        sequences = _write(path, counts.encode(documents), seed)
        splits[split] = SplitMeta(
            documents=counts.documents,
            empty_documents=counts.empty_documents,
            tokens=counts.tokens,
            text_bytes=counts.text_bytes,
            sequences=sequences,
            file_bytes=path.stat().st_size,
        )
    _check_filled(splits, seed.length)
    meta = CacheMeta(**{**vars(seed), "splits": splits})
    (folder / "meta.json").write_text(json.dumps(asdict(meta), indent=1) + "\n", encoding="utf-8")


def _write(path: Path, documents: Iterable[list[int]], seed: CacheMeta) -> int:
    """Wraps the documents to windows and writes them; the number of windows."""
    dtype = "uint16" if seed.vocab_size <= 2**16 else "int32"
    feature = datasets.List(datasets.Value(dtype), length=seed.length)
    writer = ArrowWriter(path=str(path), features=datasets.Features({"input_ids": feature}))
    sequences = 0
    try:
        for windows in wrap_documents(documents, length=seed.length, eos_id=seed.eos_id, dtype=dtype):
            column = pa.FixedSizeListArray.from_arrays(pa.array(windows.reshape(-1)), seed.length)
            writer.write_table(pa.table({"input_ids": column}), writer_batch_size=len(windows))
            sequences += len(windows)
        writer.finalize(close_stream=False)
    finally:
        writer.close()
    return sequences


class _Counts:
    """Counts what passes through `encode`."""

    def __init__(self, split: str, tokenizer: TextTokenizer, progress: Progress) -> None:
        self.documents = self.empty_documents = self.tokens = self.text_bytes = 0
        self._split = split
        self._tokenizer = tokenizer
        self._progress = progress

    def encode(self, documents: Iterable[Document]) -> Iterator[list[int]]:
        """The ids of each document that is not empty."""
        for texts in _batches(documents):
            normalized = [text for text in map(self._tokenizer.normalize, texts) if text.strip()]
            self.empty_documents += len(texts) - len(normalized)
            self.text_bytes += sum(len(text.encode()) for text in normalized)
            for ids in self._tokenizer.encode_batch(normalized) if normalized else []:
                assert self._tokenizer.mask_id not in ids, "the tokenizer gave the mask's id to text"
                self.documents += 1
                self.tokens += len(ids) + 1
                yield ids
            self._progress.tell(f"preparing {self._split}: {self.documents:,} documents, {self.tokens:,} tokens")


def _batches(documents: Iterable[Document]) -> Iterator[list[str]]:
    """Texts in groups of bounded size, for tokenizers that encode a group with several threads."""
    texts: list[str] = []
    characters = 0
    for document in documents:
        texts.append(document.text)
        characters += len(document.text)
        if len(texts) >= BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield texts
            texts, characters = [], 0
    if texts:
        yield texts


def _check_filled(splits: dict[str, SplitMeta], length: int) -> None:
    """Raises UserError for a split without a single window."""
    total = sum(counts.documents for counts in splits.values())
    empty = sum(counts.empty_documents for counts in splits.values())
    if total == 0:
        raise UserError(f"data: the corpus is empty ({empty} documents without text): point it at files with text")
    for split, counts in splits.items():
        if counts.documents == 0:
            advice = "raise" if split == "validation" else "lower"
            raise UserError(
                f"data.validation_fraction: it leaves no {split} document out of {total}: {advice} it, add documents, "
                f"or name validation files of their own in data.validation_paths"
            )
        if counts.sequences == 0:
            raise UserError(
                f"data.length={length}: longer than the {split} documents can fill, which hold {counts.tokens:,} "
                f"tokens: set it to at most {counts.tokens} or add text"
            )
