"""What a user chooses as `data`: corpora of text, their tokenizers, and how they become batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sm_diffusion.registry import MISSING, register
from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from sm_diffusion.data.chat.datamodule import ChatDataModule
    from sm_diffusion.data.corpora.base import TokenSource
    from sm_diffusion.data.corpora.file_corpus import FileCorpus
    from sm_diffusion.data.corpora.hub import Location
    from sm_diffusion.data.datamodule import TokenDataModule
    from sm_diffusion.data.loader import LoaderSettings
    from sm_diffusion.data.stores.base import Storage
    from sm_diffusion.data.stores.shard_preparer import ShardPreparer
    from sm_diffusion.data.tokenizers.build import TokenizerSpec


@dataclass
class TokenizerSettings:
    kind: Literal["char", "byte", "bpe", "hub"] = MISSING  # a-z and space | trained on the corpus | folder or hub name
    vocab_size: int = 4096  # bpe only; mask included, >= 258
    path: str = ""  # hub only
    mask: str = "auto"  # hub only: token (must have one) | auto (one is added where there is none)


@dataclass
class DataSettings:
    """Settings every corpus shares. Sizes are counted in sequences of `length` tokens."""

    name: str = MISSING
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    length: int = MISSING  # tokens a sequence
    global_batch_sequences: int = MISSING  # sequences an optimizer step, over all ranks and accumulation steps
    micro_batch_sequences: int | None = None  # sequences a forward pass and rank; null: global batch / ranks
    eval_batch_sequences: int = 64
    max_validation_sequences: int | None = None  # null: all
    num_workers: int = 0  # loader processes a rank
    cache_dir: str = "cache"  # tokenised corpora

    def source(self) -> TokenSource:
        """The corpus. A corpus of a plug-in defines this and no more."""
        raise UserError(f"data={self.name}: {type(self).__name__} names no corpus; choose one of smd config --groups")

    def storage(self, source: TokenSource, *, seed: int) -> Storage:
        """How the tokens of `source`, built from the same settings, are kept: small corpora in one cache."""
        from sm_diffusion.data.stores.base import CachedTokens

        return CachedTokens(source)

    def micro_batch(self, world_size: int) -> int:
        """Sequences a forward pass on each rank."""
        return self.micro_batch_sequences or self.global_batch_sequences // world_size

    @property
    def row_width(self) -> int | None:
        """Tokens of the longest row where rows differ in length; None: all have `length`."""
        return None

    def preparation(self, *, download: bool) -> dict[str, ShardPreparer]:
        """What `smd prepare` writes for the corpus, by part; empty for a corpus of megabytes."""
        return {}

    def datamodule(self, *, seed: int, world_size: int) -> TokenDataModule | ChatDataModule:
        """Batches for Lightning."""
        from sm_diffusion.data.datamodule import TokenDataModule

        source = self.source()
        return TokenDataModule(
            source=source,
            tokenizer=self.tokenizer_spec(),
            length=self.length,
            loader=self.loader(seed=seed, world_size=world_size),
            cache_dir=self.cache_dir,
            storage=self.storage(source, seed=seed),
        )

    def loader(self, *, seed: int, world_size: int) -> LoaderSettings:
        from sm_diffusion.data.loader import LoaderSettings

        return LoaderSettings(
            global_batch_sequences=self.global_batch_sequences,
            micro_batch_sequences=self.micro_batch(world_size),
            eval_batch_sequences=self.eval_batch_sequences,
            num_workers=self.num_workers,
            seed=seed,
            max_validation_sequences=self.max_validation_sequences,
        )

    def tokenizer_spec(self) -> TokenizerSpec:
        from sm_diffusion.data.tokenizers.build import TokenizerSpec

        tokenizer = self.tokenizer
        return TokenizerSpec(
            kind=tokenizer.kind, vocab_size=tokenizer.vocab_size, path=tokenizer.path or None, mask=tokenizer.mask
        )

    def problems(self) -> Iterator[str]:
        yield from base_problems(self)


@register("data", "python_corpus")
@dataclass
class PythonCorpusSettings(DataSettings):
    """The running interpreter's standard library: its code, or the English in its docstrings and manual."""

    kind: str = MISSING  # code | text
    validation_fraction: float = 0.05  # share of documents, in (0, 1)

    def source(self) -> TokenSource:
        from sm_diffusion.data.corpora.python_corpus import PythonCorpus

        return PythonCorpus(kind=self.kind, validation_fraction=self.validation_fraction)


@register("data", "text_files")
@dataclass
class TextFilesSettings(DataSettings):
    """A folder, file or glob of .txt, .jsonl, .parquet or .py files."""

    paths: list[str] = MISSING
    validation_paths: list[str] = field(default_factory=list)  # empty: a share of the documents of `paths`
    validation_fraction: float = 0.05
    text_field: str = "text"  # field or column of .jsonl and .parquet
    split_on_blank_lines: bool = False  # a .txt file is one document, or one a paragraph

    def source(self) -> TokenSource:
        from sm_diffusion.data.corpora.base import TextFiles

        return TextFiles(
            paths=self.paths,
            text_field=self.text_field,
            split_blank_lines=self.split_on_blank_lines,
            validation_fraction=self.validation_fraction,
            validation_paths=self.validation_paths or None,
        )

    def problems(self) -> Iterator[str]:
        yield from base_problems(self)
        if not self.paths:
            yield "data.paths=[]: no files given; set data.paths=[folder-or-glob,...]"


@dataclass
class FilterSettings:
    """Which records of a corpus of files are kept; the others are counted, by reason, in the manifest."""

    detokenizer: str = "none"  # none | wikitext | ptb | lm1b | scientific | lambada
    min_characters: int = 1
    max_characters: int = 10_000_000
    languages: list[str] = field(default_factory=list)  # empty: any
    licenses: list[str] = field(default_factory=list)  # empty: any; all of a record's licences must be listed
    max_line_characters: int | None = None  # longest line
    max_mean_line_characters: float | None = None
    min_alphanumeric: float = 0.0  # share of letters and digits, in [0, 1)


@dataclass
class StreamOptions:
    lanes: int = 8  # divides the global batch; ranks x workers that share the reading without overlap
    shuffle_sequences: int = 2048  # a lane shuffles at a time, in memory


@register("data", "file_corpus")
@dataclass
class FileCorpusSettings(DataSettings):
    """Files in the hub's formats, from the hub or a folder; prepared into shards, or streamed."""

    repo: str = ""  # dataset repository of the hub
    revision: str = "main"  # branch, tag or commit; resolved to a commit once
    download: str = ""  # where to get it by hand, for error messages
    path: str = ""  # a folder in the hub's layout instead of the hub
    prepared: str = ""  # a finished folder of `smd prepare` instead of the text
    train_files: list[str] = MISSING  # patterns; * crosses folders
    validation_files: list[str] = field(default_factory=list)
    validation_documents: int = 0  # the last so many records
    validation_fraction: float = 0.0  # share of documents, in (0, 1); used when neither of the above is set
    text_field: str = "text"
    filter: FilterSettings = field(default_factory=FilterSettings)
    deduplicate: bool = False  # texts equal but for case, white space and punctuation
    add_eos: bool = True  # between documents
    shard_documents: int = 100_000  # parquet: rows a shard
    shard_bytes: int = 256_000_000  # other formats: bytes of the file a shard
    max_fault_share: float = 0.01  # of the records; more unusable ones are an error
    streaming: bool = False  # read the training text as it is needed
    stream: StreamOptions = field(default_factory=StreamOptions)

    def source(self) -> TokenSource:
        from sm_diffusion.data.stores.base import NoSource

        return NoSource() if self.prepared else self.corpus(self.cache_dir)

    def storage(self, source: TokenSource, *, seed: int) -> Storage:
        return self.storage_in(self.cache_dir)

    def storage_in(self, cache_dir: str) -> Storage:
        """Shards, or a stream, in a cache that may be a mixture's."""
        from sm_diffusion.data.stores.base import PreparedTokens, ShardedTokens, StreamedTokens
        from sm_diffusion.data.stores.stream import StreamSettings

        if self.prepared:
            return PreparedTokens(self.prepared)
        corpus = self.corpus(cache_dir)
        if self.streaming:
            settings = StreamSettings(lanes=self.stream.lanes, shuffle_sequences=self.stream.shuffle_sequences)
            return StreamedTokens(corpus, settings, max_fault_share=self.max_fault_share)
        return ShardedTokens(corpus, max_fault_share=self.max_fault_share)

    def corpus(self, cache_dir: str | Path, *, download: bool | None = None) -> FileCorpus:
        """download: whether files of the hub are kept here; None: unless they are streamed."""
        from sm_diffusion.data.corpora.file_corpus import CorpusFiles, FileCorpus
        from sm_diffusion.data.corpora.filters import RecordFilter

        keep = not self.streaming if download is None else download
        return FileCorpus(
            name=self.name,
            location=self.location(Path(cache_dir).expanduser(), keep),
            files=CorpusFiles(
                train_files=tuple(self.train_files),
                validation_files=tuple(self.validation_files),
                validation_documents=self.validation_documents,
                validation_fraction=self.validation_fraction,
                slice_rows=self.shard_documents,
                slice_bytes=self.shard_bytes,
            ),
            record_filter=RecordFilter(
                text_field=self.text_field,
                detokenizer=self.filter.detokenizer,
                min_characters=self.filter.min_characters,
                max_characters=self.filter.max_characters,
                languages=tuple(self.filter.languages),
                licenses=tuple(self.filter.licenses),
                max_line_characters=self.filter.max_line_characters,
                max_mean_line_characters=self.filter.max_mean_line_characters,
                min_alphanumeric=self.filter.min_alphanumeric,
            ),
            deduplicate=self.deduplicate,
            add_eos=self.add_eos,
        )

    def location(self, cache_dir: Path, download: bool) -> Location:
        from sm_diffusion.data.corpora.hub import HubRepository, LocalFolder

        if self.path:
            return LocalFolder(self.path, cache_dir)
        if self.repo:
            return HubRepository(self.repo, self.revision, cache_dir, download)
        raise UserError(f"data={self.name}: not on the hub: get it from {self.download} and set data.path=FOLDER")

    def preparation(self, *, download: bool) -> dict[str, ShardPreparer]:
        return shard_preparers(self, {self.name: self}, download=download)

    def problems(self) -> Iterator[str]:
        yield from base_problems(self)
        for key in ("shard_documents", "shard_bytes"):
            if not vars(self)[key] > 0:
                yield f"data.{key}={vars(self)[key]}: must be positive"
        if not 0 <= self.max_fault_share <= 1:
            yield f"data.max_fault_share={self.max_fault_share}: must lie in [0, 1]"


@register("data", "mixture")
@dataclass
class MixtureSettings(DataSettings):
    """Several corpora of files in proportions, with the tokenizer and length given here."""

    parts: dict[str, FileCorpusSettings] = MISSING
    mixture: dict[str, float] = MISSING  # weight of each part, > 0

    def source(self) -> TokenSource:
        from sm_diffusion.data.stores.base import JoinedSource

        return JoinedSource({name: part.source() for name, part in self.parts.items()})

    def storage(self, source: TokenSource, *, seed: int) -> Storage:
        from sm_diffusion.data.stores.base import MixedTokens

        parts = {name: part.storage_in(self.cache_dir) for name, part in self.parts.items()}
        return MixedTokens(parts, dict(self.mixture), seed=seed)

    def preparation(self, *, download: bool) -> dict[str, ShardPreparer]:
        return shard_preparers(self, dict(self.parts), download=download)


def base_problems(data: DataSettings) -> Iterator[str]:
    """What is wrong with the settings every corpus shares."""
    for key in ("length", "global_batch_sequences", "micro_batch_sequences", "eval_batch_sequences"):
        if vars(data)[key] is not None and not vars(data)[key] > 0:
            yield f"data.{key}={vars(data)[key]}: must be positive"
    if data.max_validation_sequences is not None and not data.max_validation_sequences > 0:
        yield f"data.max_validation_sequences={data.max_validation_sequences}: must be positive"


def shard_preparers(
    data: DataSettings, parts: Mapping[str, FileCorpusSettings], *, download: bool
) -> dict[str, ShardPreparer]:
    """One for each part that is not prepared already. download: False reads files of the hub where they are."""
    from sm_diffusion.data.corpora.file_corpus import SPLITS
    from sm_diffusion.data.stores.shard_preparer import ShardPreparer
    from sm_diffusion.data.tokenizers.build import build_tokenizer

    cache_dir = Path(data.cache_dir).expanduser()
    preparers = {}
    for name, part in parts.items():
        if part.prepared:
            continue
        corpus = part.corpus(data.cache_dir, download=download)
        preparers[name] = ShardPreparer(
            source=corpus,
            tokenizer=build_tokenizer(data.tokenizer_spec(), source=corpus, cache_dir=cache_dir),
            length=data.length,
            cache_dir=cache_dir,
            splits=("validation",) if part.streaming else SPLITS,
            max_fault_share=part.max_fault_share,
        )
    return preparers
