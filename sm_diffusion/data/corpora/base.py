"""Where text comes from: the `TokenSource` interface and the user's own files."""

from __future__ import annotations

import glob
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from sm_diffusion.files import digest, digest_bytes, parse_json, sha256_of
from sm_diffusion.types import UserError


class Document(NamedTuple):
    """One document of a corpus.

    text: what the model is to learn, valid UTF-8 once encoded.
    name: where it came from, for error messages.
    """

    text: str
    name: str


class TokenSource(ABC):
    """A corpus in two parts. Both iterators give the same documents in the same order every time."""

    @abstractmethod
    def train(self) -> Iterator[Document]:
        """The documents to learn from."""

    @abstractmethod
    def validation(self) -> Iterator[Document]:
        """Documents no part of which is in `train`."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of the content and of every setting that changes the documents or their split."""


def in_validation(text: str, fraction: float) -> bool:
    """Whether a document belongs to validation: a stable hash of its content falls below `fraction` in (0, 1).

    Depends on nothing else, so adding, removing or reordering documents moves no other document across the split.
    """
    return int.from_bytes(digest_bytes(text)[:8], "big") < fraction * 2.0**64


def check_fraction(fraction: float) -> None:
    """Raises UserError unless 0 < fraction < 1."""
    if not 0 < fraction < 1:
        raise UserError(f"data.validation_fraction={fraction}: must lie between 0 and 1, such as 0.05")


def text_of_bytes(raw: bytes, path: Path, *, offset: int = 0) -> str:
    """Decodes UTF-8, dropping a byte order mark at the start of the file; `offset` is where `raw` starts in it."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise UserError(
            f"{path}: not UTF-8 at byte offset {at} (byte 0x{raw[error.start]:02x}): convert the file, "
            f"such as with `iconv -f latin1 -t utf-8`"
        ) from None
    return text.removeprefix("\ufeff") if offset == 0 else text


def field_of_record(record: object, field: str, where: str, key: str) -> str:
    """The text field of one record, or a UserError that says which fields the record has."""
    if not isinstance(record, dict):
        raise UserError(f"{where}: expected an object with a field {field!r}, found a {type(record).__name__}")
    if field not in record:
        names = ", ".join(sorted(map(str, record))) or "no fields"
        raise UserError(f"{where}: no field {field!r} (it has: {names}): set {key} to one of them")
    text = record[field]
    if not isinstance(text, str):
        raise UserError(f"{where}: field {field!r} is {type(text).__name__}, not text: set {key} to a text field")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: field {field!r} holds half a surrogate pair at character {error.start}: repair the record"
        ) from None
    return text


def read_whole(path: Path, _field: str) -> Iterator[Document]:
    """The file is one document."""
    yield Document(text_of_bytes(path.read_bytes(), path), str(path))


def read_jsonl(path: Path, field: str) -> Iterator[Document]:
    """A document a line: the field of a JSON object. Blank lines are skipped."""
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            line = text_of_bytes(raw, path, offset=offset)
            offset += len(raw)
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            record = parse_json(line, where, advice="repair the line")
            yield Document(field_of_record(record, field, where, "data.text_field"), where)


def read_parquet(path: Path, field: str) -> Iterator[Document]:
    """A document a row: one column of a parquet file, a row group at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not a readable parquet file ({reason}): download or write it again") from None
    with file:
        names = file.schema_arrow.names
        if field not in names:
            raise UserError(f"{path}: no column {field!r} (it has: {', '.join(names)}): set data.text_field to one")
        row = 0
        for batch in file.iter_batches(batch_size=1024, columns=[field]):
            for text in batch.column(0).to_pylist():
                where = f"{path}, row {row}"
                yield Document(field_of_record({field: text}, field, where, "data.text_field"), where)
                row += 1


READERS: dict[str, Callable[[Path, str], Iterator[Document]]] = {
    ".txt": read_whole,
    ".py": read_whole,
    ".jsonl": read_jsonl,
    ".parquet": read_parquet,
}


def find_files(paths: str | Sequence[str], key: str) -> list[Path]:
    """The files meant by folders (searched recursively), globs and file names, sorted, each once.

    Errors: UserError naming `key` for a path that does not exist, holds no readable file, or has an unknown suffix.
    """
    choices = ", ".join(READERS)
    found: set[Path] = set()
    for pattern in [paths] if isinstance(paths, str) else paths:
        path = Path(os.path.expanduser(pattern))
        if path.is_dir():
            files = [file for file in path.rglob("*") if file.suffix in READERS and file.is_file()]
            if not files:
                raise UserError(f"{key}={pattern}: the folder holds no file that ends in {choices}")
        elif path.is_file():
            files = [path]
        else:
            files = [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]
            if not files:
                raise UserError(f"{key}={pattern}: no such file, folder or glob match; paths start at {Path.cwd()}")
        unknown = sorted(file for file in files if file.suffix not in READERS)
        if unknown:
            raise UserError(f"{key}: cannot read {unknown[0]}: use files that end in {choices}")
        for file in files:
            if not os.access(file, os.R_OK):
                raise UserError(f"{key}: {file} may not be read: change its permissions or leave it out")
        found.update(files)
    if not found:
        raise UserError(f"{key} is empty: name a file, a folder or a glob")
    return sorted(found)


class TextFiles(TokenSource):
    """The user's own text: .txt and .py (a document each), .jsonl (a document a line), .parquet (a document a row).

    paths: folders (searched recursively), globs or files.
    text_field: field of a .jsonl record or column of a .parquet file that holds the text.
    split_blank_lines: whether a blank line ends a document in .txt files.
    validation_fraction: in (0, 1), share of documents kept for validation; unused with `validation_paths`.
    validation_paths: files of their own for validation; None: split `paths` by a stable hash of each document.

    Errors: UserError for missing paths, text that is not UTF-8, and records without the field.
    """

    def __init__(
        self,
        *,
        paths: str | Sequence[str],
        text_field: str,
        split_blank_lines: bool,
        validation_fraction: float,
        validation_paths: str | Sequence[str] | None = None,
    ) -> None:
        self._field = text_field
        self._split_blank_lines = split_blank_lines
        self._fraction = validation_fraction
        self._files = find_files(paths, "data.paths")
        self._validation_files = None
        if validation_paths is not None:
            self._validation_files = find_files(validation_paths, "data.validation_paths")
            shared = sorted(set(map(Path.resolve, self._files)) & set(map(Path.resolve, self._validation_files)))
            if shared:
                raise UserError(f"data.validation_paths: {shared[0]} is also in data.paths: name it in one of the two")
        else:
            check_fraction(validation_fraction)

    def train(self) -> Iterator[Document]:
        for document in self._read(self._files):
            if self._validation_files is not None or not in_validation(document.text, self._fraction):
                yield document

    def validation(self) -> Iterator[Document]:
        if self._validation_files is not None:
            yield from self._read(self._validation_files)
            return
        for document in self._read(self._files):
            if in_validation(document.text, self._fraction):
                yield document

    def fingerprint(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        fraction = self._fraction if self._validation_files is None else None
        parts: list[str | bytes] = [json.dumps(["text_files", 1, self._field, self._split_blank_lines, fraction])]
        for group in (self._files, self._validation_files or []):
            parts += [b"|group|", *(path.suffix.encode() + bytes.fromhex(sha256_of(path)) for path in group)]
        return digest(*parts)

    def _read(self, files: list[Path]) -> Iterator[Document]:
        for path in files:
            for document in READERS[path.suffix](path, self._field):
                if self._split_blank_lines and path.suffix == ".txt":
                    yield from _paragraphs(document)
                else:
                    yield document


def _paragraphs(document: Document) -> Iterator[Document]:
    """The blocks of a document between blank lines."""
    block: list[str] = []
    for line in [*document.text.splitlines(keepends=True), "\n"]:
        if line.strip():
            block.append(line)
        elif block:
            yield Document("".join(block).rstrip("\n"), document.name)
            block = []
