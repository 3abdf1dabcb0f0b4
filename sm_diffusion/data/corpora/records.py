"""Records of corpus files in the hub's formats, read by slices: what two processes read never overlaps.

| suffix                          | a record             | a slice counts  |
|---------------------------------|----------------------|-----------------|
| .parquet                        | a row                | rows            |
| .jsonl .json (one object a line)| a line               | bytes           |
| .jsonl.gz .json.gz              | a line               | nothing: whole  |
| .txt .raw .tokens               | a line               | bytes           |
| text8 (no suffix)               | a stretch of letters | bytes           |
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from sm_diffusion.types import UserError

MAX_RECORD_BYTES = 16 * 2**20
SUFFIXES = (".parquet", ".jsonl", ".json", ".jsonl.gz", ".json.gz", ".txt", ".raw", ".tokens", "text8")
WHOLE = 2**62
_SKIP_BYTES = 2**20


class Slice(NamedTuple):
    """A stretch of one file.

    start, stop: in rows or bytes, as the format counts; a line belongs to the slice that holds its first byte.
    first, last: of the records in it, those from `first` up to `last` (None: to the end).
    """

    file: str
    start: int
    stop: int
    first: int = 0
    last: int | None = None


class Record(NamedTuple):
    """The fields of a record, or why there are none."""

    fields: dict[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class Root:
    """Where files lie: a local folder, or the address of a hub repository (hf://datasets/owner/name@revision)."""

    url: str

    @property
    def is_local(self) -> bool:
        return "://" not in self.url

    def open(self, name: str) -> IO[bytes]:
        """The file, seekable, from its beginning."""
        if self.is_local:
            return (Path(self.url) / name).open("rb")
        import fsspec

        opened: IO[bytes] = fsspec.open(f"{self.url}/{name}", "rb").open()
        return opened


def suffix_of(name: str) -> str:
    """The format's suffix of a file name; '' if it is none that can be read."""
    base = name.rsplit("/", 1)[-1]
    return max((suffix for suffix in SUFFIXES if base.endswith(suffix)), key=len, default="")


def plan_slices(root: Root, name: str, *, size: int, rows: int, num_bytes: int) -> list[Slice]:
    """Cuts one file into slices of about `rows` rows (parquet, whole row groups) or `num_bytes` bytes.

    size: bytes of the file. Reads at most the footer of a parquet file.
    """
    suffix = suffix_of(name)
    if suffix == ".parquet":
        ends: list[int] = []
        total = 0
        for count in _row_groups(root, name):
            total += count
            if total - (ends[-1] if ends else 0) >= rows:
                ends.append(total)
        if total and (not ends or ends[-1] < total):
            ends.append(total)
        return [Slice(name, start, stop) for start, stop in zip([0, *ends], ends, strict=False)]
    if suffix.endswith(".gz"):
        return [Slice(name, 0, WHOLE)]
    return [Slice(name, start, min(start + num_bytes, size)) for start in range(0, size, num_bytes)]


def _row_groups(root: Root, name: str) -> list[int]:
    with root.open(name) as raw, _parquet(raw, name) as file:
        return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]


def _parquet(raw: IO[bytes], name: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(raw)
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{name}: not a readable parquet file ({reason}): download or write it again") from None


def count_records(root: Root, part: Slice) -> int:
    """Records of a slice, good and bad."""
    if suffix_of(part.file) == ".parquet":
        return part.stop - part.start
    return sum(1 for _ in read_slice(root, part, fields=[]))


def read_slice(root: Root, part: Slice, *, fields: Sequence[str]) -> Iterator[Record]:
    """The records of a slice in order, with `fields` of them where a format can tell fields apart before reading."""
    suffix = suffix_of(part.file)
    read: Callable[[IO[bytes], Slice, Sequence[str]], Iterable[Record]]
    if suffix == ".parquet":
        read = _read_parquet
    elif suffix.startswith(".json"):
        read = _read_json
    elif suffix == "text8":
        read = _read_letters
    elif suffix:
        read = _read_lines
    else:
        raise UserError(f"{part.file}: unknown format: use files that end in {', '.join(SUFFIXES)}")
    with root.open(part.file) as raw:
        for number, record in enumerate(read(raw, part, fields)):
            if part.last is not None and number >= part.last:
                return
            if number >= part.first:
                yield record


def _read_parquet(raw: IO[bytes], part: Slice, fields: Sequence[str]) -> Iterator[Record]:
    with _parquet(raw, part.file) as file:
        columns = [name for name in file.schema_arrow.names if name in fields]
        row = 0
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if row + count > part.start and row < part.stop:
                assert row >= part.start, f"{part.file}: the slice starts inside a row group"
                for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=columns):
                    yield from _rows(batch, columns)
            row += count


def _rows(batch: Any, columns: list[str]) -> Iterator[Record]:
    """The rows of a record batch; text is decoded here, because pyarrow gives up a whole column for one bad byte."""
    import pyarrow as pa

    values = []
    for column in (batch.column(name) for name in columns):
        if pa.types.is_string(column.type):
            column = column.cast(pa.binary())
        elif pa.types.is_large_string(column.type):
            column = column.cast(pa.large_binary())
        values.append(column.to_pylist())
    for row in zip(*values, strict=True) if values else ((),) * batch.num_rows:
        try:
            yield Record({name: _decoded(value) for name, value in zip(columns, row, strict=True)})
        except UnicodeDecodeError:
            yield Record({}, "not_utf8")


def _decoded(value: Any) -> Any:
    return value.decode("utf-8") if isinstance(value, bytes) else value


def _read_json(raw: IO[bytes], part: Slice, _fields: Sequence[str]) -> Iterator[Record]:
    for line, problem in _lines(raw, part):
        if problem is not None:
            yield Record({}, problem)
        elif line.strip():
            try:
                fields = json.loads(line)
            except (ValueError, RecursionError):  # integers too long for Python are ValueErrors
                yield Record({}, "not_json")
                continue
            yield Record(fields) if isinstance(fields, dict) else Record({}, "not_an_object")


def _read_lines(raw: IO[bytes], part: Slice, _fields: Sequence[str]) -> Iterator[Record]:
    for line, problem in _lines(raw, part):
        yield Record({"text": line.rstrip("\r\n")}, problem)


def _read_letters(raw: IO[bytes], part: Slice, _fields: Sequence[str]) -> Iterator[Record]:
    raw.seek(part.start)
    yield Record({"text": raw.read(part.stop - part.start).decode("ascii", errors="replace")})


def _lines(raw: IO[bytes], part: Slice) -> Iterator[tuple[str, str | None]]:
    """(line, None), or ('', problem) for one that is too long or not UTF-8. Never holds more than the longest line."""
    position = part.start
    if suffix_of(part.file).endswith(".gz"):
        raw = gzip.GzipFile(fileobj=raw)  # type: ignore[assignment]
    elif part.start:
        raw.seek(part.start - 1)
        position += _skip_line(raw) - 1
    while position < part.stop:
        line = raw.readline(MAX_RECORD_BYTES + 1)
        if not line:
            return
        at_start = position == 0
        position += len(line)
        if len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            position += _skip_line(raw)
            yield "", "record_too_large"
            continue
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            yield "", "not_utf8"
            continue
        yield (text.removeprefix("\ufeff") if at_start else text), None


def _skip_line(raw: IO[bytes]) -> int:
    """Reads to the end of the line; the number of bytes."""
    skipped = 0
    while chunk := raw.readline(_SKIP_BYTES):
        skipped += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return skipped
