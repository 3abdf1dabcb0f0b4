"""From data settings to sources and the datamodule."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sm_diffusion.app.build_hf import build_chat_datamodule, build_chat_source
from sm_diffusion.config.schema_data import (
    DataConfig,
    FileCorpusConfig,
    FilterConfig,
    MixtureConfig,
    PythonCorpusConfig,
    TextFilesConfig,
)
from sm_diffusion.config.schema_peft import ChatConfig
from sm_diffusion.data.chat.datamodule import ChatDataModule
from sm_diffusion.data.corpora.base import TextFiles, TokenSource
from sm_diffusion.data.corpora.file_corpus import SPLITS, CorpusFiles, FileCorpus
from sm_diffusion.data.corpora.filters import RecordFilter
from sm_diffusion.data.corpora.hub import HubRepository, LocalFolder, Location
from sm_diffusion.data.corpora.python_corpus import PythonCorpus
from sm_diffusion.data.datamodule import TokenDataModule
from sm_diffusion.data.loader import LoaderSettings
from sm_diffusion.data.stores.base import (
    CachedTokens,
    JoinedSource,
    MixedTokens,
    NoSource,
    PreparedTokens,
    ShardedTokens,
    Storage,
    StreamedTokens,
)
from sm_diffusion.data.stores.shard_preparer import ShardPreparer
from sm_diffusion.data.stores.stream import StreamSettings
from sm_diffusion.data.tokenizers.build import TokenizerSpec, build_tokenizer
from sm_diffusion.types import UserError


def micro_batch_sequences(data: DataConfig, world_size: int) -> int:
    """Sequences a forward pass on each rank."""
    return data.micro_batch_sequences or data.global_batch_sequences // world_size


def build_source(data: DataConfig) -> TokenSource:
    match data:
        case PythonCorpusConfig():
            return PythonCorpus(kind=data.kind, validation_fraction=data.validation_fraction)
        case TextFilesConfig():
            return TextFiles(
                paths=data.paths,
                text_field=data.text_field,
                split_blank_lines=data.split_on_blank_lines,
                validation_fraction=data.validation_fraction,
                validation_paths=data.validation_paths or None,
            )
        case ChatConfig():
            return build_chat_source(data)
        case FileCorpusConfig():
            return NoSource() if data.prepared else build_file_corpus(data, cache_dir=data.cache_dir)
        case MixtureConfig():
            return JoinedSource({name: build_source(part) for name, part in data.parts.items()})
        case _:
            raise UserError(
                f"data={data.name}: no source for {type(data).__name__}; choose one that smd config --groups lists"
            )


def build_storage(data: DataConfig, source: TokenSource, *, seed: int) -> Storage:
    """How the tokens of `source`, built from the same settings, are kept."""
    match data:
        case FileCorpusConfig():
            return _file_storage(data, cache_dir=data.cache_dir)
        case MixtureConfig():
            parts = {name: _file_storage(part, cache_dir=data.cache_dir) for name, part in data.parts.items()}
            return MixedTokens(parts, dict(data.mixture), seed=seed)
        case _:
            return CachedTokens(source)


def _file_storage(data: FileCorpusConfig, *, cache_dir: str) -> Storage:
    if data.prepared:
        return PreparedTokens(data.prepared)
    corpus = build_file_corpus(data, cache_dir=cache_dir)
    if data.streaming:
        settings = StreamSettings(lanes=data.stream.lanes, shuffle_sequences=data.stream.shuffle_sequences)
        return StreamedTokens(corpus, settings, max_fault_share=data.max_fault_share)
    return ShardedTokens(corpus, max_fault_share=data.max_fault_share)


def build_file_corpus(
    data: FileCorpusConfig, *, cache_dir: str | Path, download: bool | None = None
) -> FileCorpus:
    """download: whether files of the hub are kept here; None: unless they are streamed."""
    return FileCorpus(
        name=data.name,
        location=_location(data, Path(cache_dir).expanduser(), not data.streaming if download is None else download),
        files=CorpusFiles(
            train_files=tuple(data.train_files),
            validation_files=tuple(data.validation_files),
            validation_documents=data.validation_documents,
            validation_fraction=data.validation_fraction,
            slice_rows=data.shard_documents,
            slice_bytes=data.shard_bytes,
        ),
        record_filter=_record_filter(data.text_field, data.filter),
        deduplicate=data.deduplicate,
        add_eos=data.add_eos,
    )


def _location(data: FileCorpusConfig, cache_dir: Path, download: bool) -> Location:
    if data.path:
        return LocalFolder(data.path, cache_dir)
    if data.repo:
        return HubRepository(data.repo, data.revision, cache_dir, download)
    raise UserError(f"data={data.name}: not on the hub: get it from {data.download} and set data.path=FOLDER")


def _record_filter(text_field: str, settings: FilterConfig) -> RecordFilter:
    return RecordFilter(
        text_field=text_field,
        detokenizer=settings.detokenizer,
        min_characters=settings.min_characters,
        max_characters=settings.max_characters,
        languages=tuple(settings.languages),
        licenses=tuple(settings.licenses),
        max_line_characters=settings.max_line_characters,
        max_mean_line_characters=settings.max_mean_line_characters,
        min_alphanumeric=settings.min_alphanumeric,
    )


@dataclass(frozen=True)
class Preparation:
    """What `smd prepare` works on. preparers: of a corpus's parts, by name; empty for a corpus of megabytes."""

    name: str
    preparers: dict[str, ShardPreparer]


def build_preparation(data: DataConfig, *, download: bool) -> Preparation:
    """The shards of a corpus, or of each part of a mixture. download: False reads files of the hub where they are."""
    parts: dict[str, FileCorpusConfig] = {}
    if isinstance(data, MixtureConfig):
        parts = dict(data.parts)
    elif isinstance(data, FileCorpusConfig):
        parts = {data.name: data}
    preparers = {}
    for name, part in parts.items():
        if part.prepared:
            continue
        corpus = build_file_corpus(part, cache_dir=data.cache_dir, download=download)
        cache_dir = Path(data.cache_dir).expanduser()
        preparers[name] = ShardPreparer(
            source=corpus,
            tokenizer=build_tokenizer(tokenizer_spec(data), source=corpus, cache_dir=cache_dir),
            length=data.length,
            cache_dir=cache_dir,
            splits=("validation",) if part.streaming else SPLITS,
            max_fault_share=part.max_fault_share,
        )
    return Preparation(data.name, preparers)


def tokenizer_spec(data: DataConfig) -> TokenizerSpec:
    tokenizer = data.tokenizer
    return TokenizerSpec(
        kind=tokenizer.kind, vocab_size=tokenizer.vocab_size, path=tokenizer.path or None, mask=tokenizer.mask
    )


def build_datamodule(data: DataConfig, *, seed: int, world_size: int) -> TokenDataModule | ChatDataModule:
    loader = LoaderSettings(
        global_batch_sequences=data.global_batch_sequences,
        micro_batch_sequences=micro_batch_sequences(data, world_size),
        eval_batch_sequences=data.eval_batch_sequences,
        num_workers=data.num_workers,
        seed=seed,
        max_validation_sequences=data.max_validation_sequences,
    )
    if isinstance(data, ChatConfig):
        return build_chat_datamodule(data, loader=loader)
    source = build_source(data)
    return TokenDataModule(
        source=source,
        tokenizer=tokenizer_spec(data),
        length=data.length,
        loader=loader,
        cache_dir=data.cache_dir,
        storage=build_storage(data, source, seed=seed),
    )
