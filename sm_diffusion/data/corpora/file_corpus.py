"""A corpus as slices of files: what the shards of `smd prepare` and the streaming loader are made from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from sm_diffusion.data.corpora.base import Document, TokenSource, check_fraction, in_validation
from sm_diffusion.data.corpora.filters import Cleaned, RecordFilter, same_text
from sm_diffusion.data.corpora.hub import FileInfo, HubRepository, Located, Location, matching
from sm_diffusion.data.corpora.records import Root, Slice, count_records, plan_slices, read_slice, suffix_of
from sm_diffusion.files import digest
from sm_diffusion.types import UserError

CORPUS_VERSION = 1
SPLITS = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class CorpusFiles:
    """Which files make up a corpus, and how it is divided. The first rule that applies decides:

    validation_files:     patterns of files of their own.
    text8:                its letters 90 % to 95 %, as in D3PM and MDLM.
    validation_documents: the last so many records (OpenWebText: 100,000).
    validation_fraction:  share of documents, by a stable hash of their text.

    train_files: patterns; may match nothing where only `validation` is of interest (an evaluation set).
    slice_rows, slice_bytes: size of a slice, one prepared shard each.
    """

    train_files: tuple[str, ...]
    validation_files: tuple[str, ...] = ()
    validation_documents: int = 0
    validation_fraction: float = 0.0
    slice_rows: int = 100_000
    slice_bytes: int = 256_000_000


class FileCorpus(TokenSource):
    """Documents from files in the hub's formats.

    location: where they are.     files: which, and how divided.     record_filter: which records are kept.
    deduplicate: leave out near duplicates (`same_text`) of an earlier document of the split.
    add_eos: an EOS after every document.

    Nothing is read or downloaded before it is needed. Errors: UserError, see `Location` and `RecordFilter`.
    """

    def __init__(
        self,
        *,
        name: str,
        location: Location,
        files: CorpusFiles,
        record_filter: RecordFilter,
        deduplicate: bool = False,
        add_eos: bool = True,
    ) -> None:
        self.name = name
        self.record_filter = record_filter
        self.deduplicate = deduplicate
        self.add_eos = add_eos
        self._location = location
        self._files = files

    @cached_property
    def located(self) -> Located:
        """The files, not downloaded yet."""
        return self._location.locate(self._patterns)

    def fetch(self) -> None:
        """Downloads the files, if they come from the hub and are to be kept."""
        if isinstance(self._location, HubRepository) and self._location.download:
            self._location.fetch(self.located, self._patterns)

    @property
    def root(self) -> Root:
        return self.located.root

    @cached_property
    def slices(self) -> dict[str, list[Slice]]:
        """Every split's slices, in corpus order."""
        self.fetch()
        train = self._of(self._files.train_files, without=self._files.validation_files)
        if self._files.validation_files:
            return {"train": self._plan(train), "validation": self._plan(self._of(self._files.validation_files))}
        if train and all(suffix_of(file.name) == "text8" for file in train):
            return _split_text8(train)
        whole = self._plan(train)
        if self._files.validation_documents:
            return _split_last(self.root, whole, self._files.validation_documents)
        check_fraction(self._files.validation_fraction)
        return {"train": whole, "validation": whole}

    def documents(self, split: str, part: Slice) -> Iterator[Cleaned]:
        """The slice's documents that belong to the split, and its refused records (these in 'train' only)."""
        by_hash = not (self._files.validation_files or self._files.validation_documents) and (
            suffix_of(part.file) != "text8"
        )
        for record in read_slice(self.root, part, fields=self.record_filter.fields):
            cleaned = self.record_filter.clean(record)
            if not by_hash:
                yield cleaned
            elif cleaned.refused is not None:
                if split == "train":
                    yield cleaned
            elif self._in_validation(cleaned.text) == (split == "validation"):
                yield cleaned

    def _in_validation(self, text: str) -> bool:
        """By the text, or, without near duplicates, by what all of them share."""
        key = same_text(text).hex() if self.deduplicate else text
        return in_validation(key, self._files.validation_fraction)

    def train(self) -> Iterator[Document]:
        return self._texts("train")

    def validation(self) -> Iterator[Document]:
        return self._texts("validation")

    def _texts(self, split: str) -> Iterator[Document]:
        for part in self.slices[split]:
            for cleaned in self.documents(split, part):
                if cleaned.refused is None:
                    yield Document(cleaned.text, part.file)

    def fingerprint(self) -> str:
        """Of the settings, and of the files' names, sizes and content (hub: and commit)."""
        return digest(json.dumps(self.describe(), sort_keys=True))

    def describe(self) -> dict[str, object]:
        """Everything that decides the documents, as plain values."""
        return {
            "version": CORPUS_VERSION,
            "name": self.name,
            "revision": self.located.revision,
            "files": [[part for part in file if part != ""] for file in self.located.files],
            "division": asdict(self._files),
            "filter": asdict(self.record_filter),
            "deduplicate": self.deduplicate,
            "add_eos": self.add_eos,
        }

    @property
    def _patterns(self) -> list[str]:
        return [*self._files.train_files, *self._files.validation_files]

    def _of(self, patterns: Sequence[str], without: Sequence[str] = ()) -> list[FileInfo]:
        left_out = set(matching(self.located.files, without))
        return [file for file in matching(self.located.files, patterns) if file not in left_out]

    def _plan(self, files: Sequence[FileInfo]) -> list[Slice]:
        return [
            part
            for file in files
            for part in plan_slices(
                self.root,
                file.name,
                size=file.size,
                rows=self._files.slice_rows,
                num_bytes=self._files.slice_bytes,
            )
        ]


def _split_last(root: Root, slices: list[Slice], num_validation: int) -> dict[str, list[Slice]]:
    """Cuts so many records off the end."""
    train, validation = list(slices), list[Slice]()
    missing = num_validation
    while missing and train:
        part = train.pop()
        count = count_records(root, part)
        if count <= missing:
            validation.insert(0, part)
            missing -= count
        else:
            train.append(part._replace(last=count - missing))
            validation.insert(0, part._replace(first=count - missing))
            missing = 0
    if missing or not train:
        raise UserError(
            f"data.validation_documents={num_validation}: the corpus holds no more than {num_validation - missing} "
            f"records: lower it"
        )
    return {"train": train, "validation": validation}


def _split_text8(files: list[FileInfo]) -> dict[str, list[Slice]]:
    (file,) = files
    piece = 1_024_000  # letters; a multiple of every usual length, so that no window is lost between pieces
    train, validation = file.size * 90 // 100, file.size * 95 // 100

    def cut(start: int, stop: int) -> list[Slice]:
        return [Slice(file.name, at, min(at + piece, stop)) for at in range(start, stop, piece)]

    return {"train": cut(0, train), "validation": cut(train, validation)}
