"""Builds prepared shards: in parallel, resumable at any moment, each shard a pure function of its slice."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sm_diffusion.data.corpora.file_corpus import SPLITS, FileCorpus
from sm_diffusion.data.corpora.filters import same_text
from sm_diffusion.data.corpora.records import Slice
from sm_diffusion.data.stores.packing import wrap_documents
from sm_diffusion.data.stores.shard_format import ShardMeta, as_json, dtype_of, read_sidecar
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.files import digest, encode, replacing
from sm_diffusion.types import UserError

BATCH_CHARACTERS = 2**20
WATCH_SECONDS = 1.0


class Job(NamedTuple):
    """A shard to build. name: of its files, without suffix."""

    name: str
    split: str
    part: Slice


@dataclass(frozen=True)
class Recipe:
    """All that decides the content of shards. drops: per shard the numbers of documents that repeat an earlier one."""

    source: FileCorpus
    tokenizer: TextTokenizer
    length: int

    @property
    def key(self) -> str:
        text = json.dumps([1, self.source.fingerprint(), self.tokenizer.fingerprint(), self.length])
        return digest(text)[:16]

    def jobs(self, splits: Sequence[str] = SPLITS) -> list[Job]:
        return [
            Job(f"{split}-{number:05d}", split, part)
            for split in splits
            for number, part in enumerate(self.source.slices[split])
        ]


class SliceTokens:
    """Encodes the documents of a slice and counts what passes and what is refused. drop: numbers of documents."""

    def __init__(self, recipe: Recipe, split: str, part: Slice, *, drop: frozenset[int] = frozenset()) -> None:
        self.documents = self.tokens = self.text_bytes = 0
        self.refused: Counter[str] = Counter()
        self._recipe, self._split, self._part, self._drop = recipe, split, part, drop

    def __iter__(self) -> Iterator[list[int]]:
        tokenizer, end = self._recipe.tokenizer, int(self._recipe.source.add_eos)
        for texts in self._batches():
            for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
                if not ids:
                    self.refused["empty"] += 1
                    continue
                assert tokenizer.mask_id not in ids, "the tokenizer gave the mask's id to text"
                self.documents += 1
                self.tokens += len(ids) + end
                self.text_bytes += len(text.encode())
                yield ids

    def windows(self) -> Iterator[np.ndarray]:
        """Arrays (windows, L); the last, partial window of the slice is dropped."""
        tokenizer = self._recipe.tokenizer
        return wrap_documents(
            self,
            length=self._recipe.length,
            eos_id=tokenizer.eos_id if self._recipe.source.add_eos else None,
            dtype=dtype_of(tokenizer.vocab_size),
        )

    def _batches(self) -> Iterator[list[str]]:
        texts, characters, number = [], 0, -1
        for cleaned in self._recipe.source.documents(self._split, self._part):
            if cleaned.refused is not None:
                self.refused[cleaned.refused] += 1
                continue
            number += 1
            if number in self._drop:
                self.refused["duplicate"] += 1
                continue
            texts.append(self._recipe.tokenizer.normalize(cleaned.text))
            characters += len(cleaned.text)
            if characters >= BATCH_CHARACTERS:
                yield texts
                texts, characters = [], 0
        if texts:
            yield texts


def build_shard(recipe: Recipe, folder: Path, job: Job) -> ShardMeta:
    """Writes the shard, then its sidecar; both appear whole or not at all."""
    drop: frozenset[int] = frozenset()
    if recipe.source.deduplicate:
        drop = frozenset(np.load(folder / "duplicates" / f"{job.name}.npy").tolist())
    tokens = SliceTokens(recipe, job.split, job.part, drop=drop)
    sha256, sequences = hashlib.sha256(), 0
    with replacing(folder / f"{job.name}.bin") as part, part.open("wb") as file:
        for windows in tokens.windows():
            raw = windows.tobytes()
            file.write(raw)
            sha256.update(raw)
            sequences += len(windows)
        size = file.tell()
    meta = ShardMeta(
        name=job.name,
        split=job.split,
        part=list(job.part),
        sha256=sha256.hexdigest(),
        file_bytes=size,
        sequences=sequences,
        documents=tokens.documents,
        tokens=tokens.tokens,
        text_bytes=tokens.text_bytes,
        refused=dict(sorted(tokens.refused.items())),
    )
    with replacing(folder / f"{job.name}.json") as part:
        part.write_bytes(encode(as_json(asdict(meta))))
    return meta


def hash_slice(recipe: Recipe, folder: Path, job: Job) -> int:
    """Notes what identifies each document of a slice up to near duplicates; returns their number."""
    documents = recipe.source.documents(job.split, job.part)
    keys = b"".join(same_text(cleaned.text) for cleaned in documents if cleaned.refused is None)
    _save(folder / "duplicates" / f"{job.name}.keys.npy", np.frombuffer(keys, dtype=np.uint64))
    return len(keys) // 8


def find_duplicates(recipe: Recipe, folder: Path, jobs: Sequence[Job], *, workers: int) -> None:
    """Writes per shard the numbers of its documents that an earlier document of the split already showed."""
    (folder / "duplicates").mkdir(exist_ok=True)
    wanted = [job for job in jobs if not (folder / "duplicates" / f"{job.name}.npy").is_file()]
    if not wanted:
        return
    missing = [job for job in jobs if not (folder / "duplicates" / f"{job.name}.keys.npy").is_file()]
    run_jobs(hash_slice, recipe, folder, missing, workers=workers, tell=lambda _: None)
    for split in sorted({job.split for job in jobs}):
        names = [job.name for job in jobs if job.split == split]
        keys = [np.load(folder / "duplicates" / f"{name}.keys.npy") for name in names]
        later = np.ones(sum(map(len, keys)), dtype=bool)
        later[np.unique(np.concatenate(keys), return_index=True)[1]] = False  # the first of each stays
        starts = np.cumsum([0, *map(len, keys)])
        for name, start, stop in zip(names, starts, starts[1:], strict=False):
            _save(folder / "duplicates" / f"{name}.npy", np.flatnonzero(later[start:stop]))


def _save(path: Path, array: np.ndarray) -> None:
    with replacing(path) as part, part.open("wb") as file:
        np.save(file, array)


def unfinished(folder: Path, jobs: Sequence[Job]) -> list[Job]:
    """The jobs whose shard is missing or not whole; a warning names what was there before and is damaged."""
    left = []
    for job in jobs:
        if read_sidecar(folder, job.name) is None:
            left.append(job)
            if (folder / f"{job.name}.json").exists():
                warnings.warn(f"{folder / job.name}.bin: damaged or missing, building it again", stacklevel=2)
    return left


Work = Callable[[Recipe, Path, Job], object]
_recipe: Recipe | None = None  # of this worker process


def run_jobs(
    work: Work, recipe: Recipe, folder: Path, jobs: Sequence[Job], *, workers: int, tell: Callable[[object], None]
) -> None:
    """Runs `work` on every job, in `workers` processes if there are enough jobs; `tell` gets each result."""
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            tell(work(recipe, folder, job))
        return
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_start_worker, initargs=(recipe, os.getpid())
    )
    try:
        futures = [pool.submit(_work, work, folder, job) for job in jobs]
        for future in as_completed(futures):
            tell(future.result())
    except BrokenProcessPool:
        raise UserError(
            "data: a preparing process was killed, probably for memory: run it again, it goes on where it was, "
            "with fewer processes (--workers)"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker(recipe: Recipe, parent: int) -> None:
    global _recipe
    _recipe = recipe
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process a core already
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: int) -> None:
    """Ends this worker when its parent was killed, whoever did it and however."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def _work(work: Work, folder: Path, job: Job) -> object:
    assert _recipe is not None
    return work(_recipe, folder, job)
