"""Small corpora and a datamodule factory for the data tests."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sm_diffusion.data.corpora.base import Document, TokenSource
from sm_diffusion.data.corpora.file_corpus import FileCorpus
from sm_diffusion.data.corpora.hub import LocalFolder
from sm_diffusion.data.loader import LoaderSettings
from sm_diffusion.data.stores.arrow_cache import TokenCache, prepare_tokens
from sm_diffusion.data.tokenizers.base import ByteTokenizer
from sm_diffusion.data.tokenizers.build import TokenizerSpec

if TYPE_CHECKING:
    from sm_diffusion.data.datamodule import TokenDataModule
    from sm_diffusion.data.stores.shard_preparer import ShardPreparer

CODE = "def function_{0}(value):\n    return value + {0}  # adds {0} and nothing else\n"
BYTES = TokenizerSpec(kind="byte")
LOADER = LoaderSettings(
    global_batch_sequences=4, micro_batch_sequences=2, eval_batch_sequences=3, num_workers=0, seed=7
)


class MemorySource(TokenSource):
    """Texts given as they are."""

    def __init__(self, train: Sequence[str], validation: Sequence[str]) -> None:
        self._train = list(train)
        self._validation = list(validation)

    def train(self) -> Iterator[Document]:
        return (Document(text, f"train {index}") for index, text in enumerate(self._train))

    def validation(self) -> Iterator[Document]:
        return (Document(text, f"validation {index}") for index, text in enumerate(self._validation))

    def fingerprint(self) -> str:
        return hashlib.sha256(repr((self._train, self._validation)).encode()).hexdigest()


class GatedSource(TokenSource):
    """A `MemorySource` that tells of its use through files: `builds` gets a line when it is read, and reading stops
    until `gate` exists. Its fingerprint is that of the plain source."""

    def __init__(self, source: MemorySource, *, builds: Path, gate: Path) -> None:
        self._source = source
        self._builds = builds
        self._gate = gate

    def train(self) -> Iterator[Document]:
        with self._builds.open("a") as file:
            file.write(f"{os.getpid()}\n")
        yield from self._source.train()
        while not self._gate.exists():
            time.sleep(0.01)

    def validation(self) -> Iterator[Document]:
        return self._source.validation()

    def fingerprint(self) -> str:
        return self._source.fingerprint()


def tiny_source() -> MemorySource:
    """About 420 training and 70 validation bytes in documents of different lengths."""
    train = [f"document {index} " + "abc " * (index % 7) for index in range(20)]
    return MemorySource(train, [f"held out {index} " + "xyz " * index for index in range(4)])


def tiny_datamodule(cache_dir: Path, **changes: object) -> TokenDataModule:
    """Bytes, length 8, with `LoaderSettings` changed as told."""
    from sm_diffusion.data.datamodule import TokenDataModule  # lightning takes seconds to import

    return TokenDataModule(
        source=tiny_source(),
        tokenizer=BYTES,
        length=8,
        loader=replace(LOADER, **changes),  # type: ignore[arg-type]
        cache_dir=cache_dir,
    )


def one_line(error: BaseException) -> str:
    """The message of an error, checked to be a single line."""
    message = str(error)
    assert "\n" not in message, message
    return message


WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"]


def document(number: int) -> str:
    """A text that no other number has, 8 to 40 words long."""
    return f"document {number} says " + " ".join(WORDS[(number * 7 + place) % 10] for place in range(6 + number % 30))


def write_parquet(path: Path, records: Sequence[dict[str, object]], *, row_group: int = 5) -> Path:
    """A parquet file in the hub's layout, with small row groups."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(records)), path, row_group_size=row_group)
    return path


def write_jsonl(path: Path, records: Sequence[object]) -> Path:
    """One JSON value a line; bytes are written as they are; .gz compresses."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    raw = b"".join(line + b"\n" for line in lines)
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
    return path


def write_openwebtext(folder: Path, *, files: int = 3, documents: int = 20) -> Path:
    """The layout of Skylion007/openwebtext: plain_text/train-0000i-of-0000n.parquet with one column."""
    for number in range(files):
        rows = [{"text": document(number * documents + place)} for place in range(documents)]
        write_parquet(folder / "plain_text" / f"train-{number:05d}-of-{files:05d}.parquet", rows)
    return folder


def file_corpus(folder: Path | str, *, record_filter: dict[str, object] | None = None, **changes: object) -> FileCorpus:
    """A corpus of a local folder: parquet and jsonl, the last 10 records for validation, 10 rows a shard."""
    from sm_diffusion.data.corpora.file_corpus import CorpusFiles, FileCorpus
    from sm_diffusion.data.corpora.filters import RecordFilter

    own = {name: changes.pop(name) for name in ("deduplicate", "add_eos") if name in changes}
    files = {
        "train_files": ("*train*.parquet", "*.jsonl", "*.gz"),
        "validation_documents": 10,
        "slice_rows": 10,
        "slice_bytes": 500,
    }
    return FileCorpus(
        name="tiny",
        location=LocalFolder(str(folder)),
        files=CorpusFiles(**{**files, **changes}),  # type: ignore[arg-type]
        record_filter=RecordFilter(**{"text_field": "text", **(record_filter or {})}),  # type: ignore[arg-type]
        **own,  # type: ignore[arg-type]
    )


def shard_preparer(corpus: FileCorpus, cache_dir: Path, *, max_fault_share: float = 1.0) -> ShardPreparer:
    """Bytes, length 16."""
    from sm_diffusion.data.stores.shard_preparer import ShardPreparer

    return ShardPreparer(
        source=corpus, tokenizer=ByteTokenizer(), length=16, cache_dir=cache_dir, max_fault_share=max_fault_share
    )


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder but duplicates' working files."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def prepared(cache_dir: Path, *, source: MemorySource | None = None, length: int = 8) -> TokenCache:
    return prepare_tokens(source=source or tiny_source(), tokenizer=ByteTokenizer(), length=length, cache_dir=cache_dir)


def everything(cache: TokenCache) -> tuple[list[list[int]], list[list[int]]]:
    train, validation = (table.rows(range(len(table))).tolist() for table in (cache.train, cache.validation))
    return train, validation


def folder_of(cache_dir: Path) -> Path:
    (folder,) = (path for path in cache_dir.iterdir() if path.is_dir())
    return folder


def prepare_command(folder: Path, *more: str) -> list[str]:
    return [
        "prepare",
        "data=openwebtext",
        f"data.path={folder / 'owt'}",
        f"data.cache_dir={folder / 'cache'}",
        "data.tokenizer.kind=byte",
        "data.length=16",
        "data.validation_documents=10",
        "data.shard_documents=10",
        *more,
    ]


def folder_below(cache_dir: Path) -> Path:
    (folder,) = (path for path in (cache_dir / "prepared").iterdir() if path.is_dir())
    return folder
