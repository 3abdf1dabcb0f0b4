"""Small corpora and a datamodule factory for the data tests."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sm_diffusion.data.loader import LoaderSettings
from sm_diffusion.data.sources import Document, TokenSource
from sm_diffusion.data.tokenizer_spec import TokenizerSpec

if TYPE_CHECKING:
    from sm_diffusion.data.datamodule import TokenDataModule

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
