"""Prepares a corpus into shards: estimate, free disk, build, resume, verify, manifest."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from sm_diffusion.data.corpora.file_corpus import SPLITS, FileCorpus
from sm_diffusion.data.corpora.filters import FAULTS
from sm_diffusion.data.corpora.records import WHOLE, Slice, plan_slices, suffix_of
from sm_diffusion.data.stores.arrow_cache import TokenCache
from sm_diffusion.data.stores.cache import NOTICE_SECONDS, disk_full
from sm_diffusion.data.stores.shard_format import (
    FORMAT,
    Manifest,
    ShardMeta,
    damaged,
    dtype_of,
    manifest_json,
    open_shards,
    read_manifest,
    read_sidecar,
    totals,
)
from sm_diffusion.data.stores.shard_writer import (
    Job,
    Recipe,
    SliceTokens,
    build_shard,
    find_duplicates,
    run_jobs,
    unfinished,
)
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.files import encode, remove_temporary, replacing
from sm_diffusion.types import UserError

SAMPLES = 6
SAMPLE_BYTES = 2**18
SAMPLE_RECORDS = 200
COMPRESSION = 4  # of gzip, for the estimate


@dataclass(frozen=True)
class Estimate:
    """From a small sample: tokens in all, bytes of the shards still to write, seconds of one core to do so."""

    tokens: int
    disk_bytes: int
    core_seconds: float
    shards: int
    shards_left: int


class ShardPreparer:
    """Prepares one corpus with one tokenizer.

    splits: streaming needs 'validation' only.     max_fault_share: of the records, more is refused at the end.
    """

    def __init__(
        self,
        *,
        source: FileCorpus,
        tokenizer: TextTokenizer,
        length: int,
        cache_dir: Path,
        splits: Sequence[str] = SPLITS,
        max_fault_share: float = 0.01,
    ) -> None:
        if length < 1:
            raise UserError(f"data.length={length}: must be at least 1 token")
        self._recipe = Recipe(source=source, tokenizer=tokenizer, length=length)
        self._splits = tuple(splits)
        self._max_fault_share = max_fault_share
        suffix = "" if self._splits == SPLITS else "-" + "-".join(self._splits)
        self.folder = cache_dir / "prepared" / f"{source.name}-{self._recipe.key}{suffix}"

    def prepare(self, *, workers: int | None = None) -> TokenCache:
        """Opens the shards, building what is missing. One process builds, others wait, then find the result."""
        manifest = read_manifest(self.folder)
        if manifest is None or damaged(self.folder, manifest, deep=False):
            with self._locked():
                self._build(workers or cores(), expected=manifest)
                manifest = read_manifest(self.folder)
        assert manifest is not None
        return open_shards(self.folder, manifest)

    def verify(self, *, workers: int | None = None) -> list[str]:
        """Reads every shard; those that differ from the manifest are built again. One line for each of them.

        Errors: UserError if the folder is not complete, or a rebuilt shard differs from the manifest, because the
        source changed.
        """
        manifest = read_manifest(self.folder)
        if manifest is None:
            raise UserError(f"{self.folder}: not complete, nothing to verify: run smd prepare without --verify first")
        bad = damaged(self.folder, manifest, deep=True)
        lines = [f"{self.folder / shard.name}.bin {what}: building it again" for shard, what in bad]
        for line in lines:
            print(line, file=sys.stderr, flush=True)
        if bad:
            with self._locked():
                for shard, _ in bad:
                    (self.folder / f"{shard.name}.json").unlink(missing_ok=True)
                self._build(workers or cores(), expected=manifest)
        return lines

    def estimate(self) -> Estimate:
        """What is left to do, from a sample of the slices. Writes nothing."""
        jobs = self._recipe.jobs(self._splits)
        left = {job.name for job in jobs if read_sidecar(self.folder, job.name) is None}
        tokens = tokens_left = seconds = 0.0
        rates = [self._sample(job) for job in _spread(jobs, SAMPLES)]
        units = sum(rate[0] for rate in rates) or 1.0
        per_unit, seconds_per_unit = sum(r[1] for r in rates) / units, sum(r[2] for r in rates) / units
        for job in jobs:
            size = self._units(job.part)
            tokens += size * per_unit
            if job.name in left:
                tokens_left += size * per_unit
                seconds += size * seconds_per_unit
        if self._recipe.source.deduplicate:
            seconds *= 1.3
        item = int(dtype_of(self._recipe.tokenizer.vocab_size)[-1])
        return Estimate(int(tokens), int(tokens_left * item), seconds, len(jobs), len(left))

    def _sample(self, job: Job) -> tuple[float, float, float]:
        """(units, tokens, seconds) of the beginning of a slice; a unit is a row or a byte of the file."""
        part, start = job.part, time.perf_counter()
        suffix = suffix_of(part.file)
        if suffix == ".parquet":
            groups = plan_slices(self._recipe.source.root, part.file, size=0, rows=1, num_bytes=1)
            part = next(group for group in groups if group.start >= part.start)._replace(last=SAMPLE_RECORDS)
        elif suffix.endswith(".gz"):
            part = part._replace(last=SAMPLE_RECORDS)
        else:
            part = part._replace(stop=min(part.stop, part.start + SAMPLE_BYTES), first=0, last=None)
        tokens = SliceTokens(self._recipe, job.split, part)
        for _ in tokens:
            pass
        seconds = time.perf_counter() - start
        if suffix == ".parquet":
            return min(part.stop - part.start, SAMPLE_RECORDS), tokens.tokens, seconds
        if suffix.endswith(".gz"):
            return tokens.text_bytes / COMPRESSION, tokens.tokens, seconds
        return part.stop - part.start, tokens.tokens, seconds

    def _units(self, part: Slice) -> float:
        if part.stop == WHOLE:
            return next(file.size for file in self._recipe.source.located.files if file.name == part.file)
        records = part.stop - part.start
        if suffix_of(part.file) == ".parquet":
            return (records if part.last is None else part.last) - part.first
        return records

    def _check_disk(self) -> None:
        estimate = self.estimate()
        folder = self.folder.parent
        free = shutil.disk_usage(folder).free
        if estimate.disk_bytes * 1.05 > free:
            raise UserError(
                f"data.cache_dir={folder.parent}: about {estimate.disk_bytes / 1e9:.2f} GB of shards are to be written "
                f"and {free / 1e9:.2f} GB are free: free some space or set data.cache_dir to a folder on another disk"
            )

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"data.cache_dir={self.folder.parent.parent}: cannot be written ({error.strerror}): set data.cache_dir "
                f"to a folder of yours"
            ) from None
        with FileLock(f"{self.folder}.lock"):
            try:
                yield
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise disk_full(self.folder.parent.parent, 0) from None
                raise

    def _build(self, workers: int, *, expected: Manifest | None = None) -> None:
        remove_temporary(self.folder)
        jobs = self._recipe.jobs(self._splits)
        left = unfinished(self.folder, jobs)
        if left:
            self._check_disk()
            if self._recipe.source.deduplicate:
                find_duplicates(self._recipe, self.folder, jobs, workers=workers)
            progress = _ShardProgress(self._recipe.source.name, len(jobs), len(left))
            run_jobs(build_shard, self._recipe, self.folder, left, workers=workers, tell=progress.tell)
        shards = [shard for job in jobs if (shard := read_sidecar(self.folder, job.name)) is not None]
        assert len(shards) == len(jobs), "another process removed shards"
        for old, new in zip(expected.shards if expected else [], shards, strict=False):
            if old != new:
                raise UserError(
                    f"{self.folder / new.name}.bin: built again it is another shard: the source changed since the "
                    f"manifest was written: move the folder away and prepare anew"
                )
        counts = totals(shards)
        self._check_content(counts)
        text = manifest_json(self._manifest(shards, counts))
        path = self.folder / "manifest.json"
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            with replacing(path) as part:
                part.write_bytes(encode(text))

    def _manifest(self, shards: list[ShardMeta], counts: dict[str, dict[str, object]]) -> Manifest:
        recipe, tokenizer = self._recipe, self._recipe.tokenizer
        empty: dict[str, object] = dict.fromkeys(("documents", "tokens", "text_bytes", "sequences", "file_bytes"), 0)
        return Manifest(
            format=FORMAT,
            key=recipe.key,
            length=recipe.length,
            vocab_size=tokenizer.vocab_size,
            mask_id=tokenizer.mask_id,
            eos_id=tokenizer.eos_id,
            dtype=dtype_of(tokenizer.vocab_size),
            tokenizer=tokenizer.fingerprint(),
            source=recipe.source.fingerprint(),
            settings=recipe.source.describe(),
            totals={split: counts.get(split, {**empty, "refused": {}}) for split in SPLITS},
            shards=shards,
        )

    def _check_content(self, counts: dict[str, dict[str, object]]) -> None:
        refused: dict[str, int] = {}
        documents = 0
        for split in counts.values():
            documents += int(str(split["documents"]))
            for reason, number in dict(split["refused"]).items():  # type: ignore[call-overload]
                refused[reason] = refused.get(reason, 0) + number
        faults = sum(number for reason, number in refused.items() if reason in FAULTS)
        listed = ", ".join(f"{reason} {number:,}" for reason, number in sorted(refused.items())) or "none"
        if faults > self._max_fault_share * (faults + documents):
            field = self._recipe.source.record_filter.text_field
            raise UserError(
                f"data: {faults:,} of {faults + documents:,} records are unusable (refused: {listed}): set "
                f"data.text_field (now {field}) and the files right, or raise data.max_fault_share"
            )
        for name in self._splits:
            if name in counts and counts[name]["sequences"] == 0 and (name == "validation" or documents == 0):
                raise UserError(
                    f"data: the {name} split fills no sequence of data.length={self._recipe.length} (documents kept "
                    f"{documents:,}; refused: {listed}): add text, shorten data.length or loosen the filters"
                )


class _ShardProgress:
    """A line now and then: shards, tokens, speed and time left."""

    def __init__(self, name: str, total: int, left: int) -> None:
        self._name, self._total, self._left = name, total, left
        self._done = self._tokens = 0
        self._start = self._last = time.monotonic()

    def tell(self, result: object) -> None:
        assert isinstance(result, ShardMeta)
        self._done += 1
        self._tokens += result.tokens
        now = time.monotonic()
        if now - self._last < NOTICE_SECONDS and self._done < self._left:
            return
        if now - self._start < NOTICE_SECONDS:
            return
        self._last, elapsed = now, now - self._start
        print(
            f"preparing {self._name}: {self._total - self._left + self._done} of {self._total} shards, "
            f"{self._tokens:,} tokens, {self._tokens / elapsed:,.0f} tokens/s, about "
            f"{elapsed / self._done * (self._left - self._done) / 60:.1f} minutes left",
            file=sys.stderr,
            flush=True,
        )


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _spread(jobs: Sequence[Job], count: int) -> list[Job]:
    return [jobs[number * len(jobs) // count] for number in range(count)] if len(jobs) > count else list(jobs)
