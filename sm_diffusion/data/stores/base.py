"""How a corpus is kept between text and batches: small caches, shards, a finished folder, a stream, a mixture."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from sm_diffusion.data.corpora.base import Document, TokenSource
from sm_diffusion.data.corpora.file_corpus import FileCorpus
from sm_diffusion.data.loader import LoaderSettings, TrainLoader, table_loader
from sm_diffusion.data.stores.arrow_cache import SplitMeta, TokenCache, prepare_tokens
from sm_diffusion.data.stores.mixture import ConcatTable, MixtureTable, check_weights
from sm_diffusion.data.stores.shard_format import open_prepared
from sm_diffusion.data.stores.shard_preparer import ShardPreparer
from sm_diffusion.data.stores.shard_writer import Recipe
from sm_diffusion.data.stores.stream import StreamLoader, StreamPlan, StreamSettings
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.types import UserError


@dataclass(frozen=True)
class Place:
    """tokenizer, length: L tokens a sequence.     cache_dir: of everything prepared."""

    tokenizer: TextTokenizer
    length: int
    cache_dir: Path


class Storage(ABC):
    """Opens a corpus as tables of sequences, preparing it first if need be."""

    @abstractmethod
    def open(self, place: Place) -> TokenCache:
        """UserError for a corpus that cannot be used."""

    @abstractmethod
    def train_loader(
        self, place: Place, cache: TokenCache, loader: LoaderSettings, *, rank: int, world_size: int
    ) -> TrainLoader | StreamLoader:
        """Training batches of one data-parallel rank, with a resumable state."""


class TableStorage(Storage, ABC):
    """Whatever trains from a table."""

    def train_loader(
        self, place: Place, cache: TokenCache, loader: LoaderSettings, *, rank: int, world_size: int
    ) -> TrainLoader | StreamLoader:
        return table_loader(cache.train, loader, rank=rank, world_size=world_size)


@final
class CachedTokens(TableStorage):
    """One Arrow file a split, for corpora of megabytes (`prepare_tokens`)."""

    def __init__(self, source: TokenSource) -> None:
        self._source = source

    def open(self, place: Place) -> TokenCache:
        return prepare_tokens(
            source=self._source, tokenizer=place.tokenizer, length=place.length, cache_dir=place.cache_dir
        )


@final
class ShardedTokens(TableStorage):
    """Shards (`ShardPreparer`), for corpora of gigabytes. workers: processes; None: all cores."""

    def __init__(self, source: FileCorpus, *, max_fault_share: float, workers: int | None = None) -> None:
        self._source = source
        self._max_fault_share = max_fault_share
        self._workers = workers

    def preparer(self, place: Place) -> ShardPreparer:
        return ShardPreparer(
            source=self._source,
            tokenizer=place.tokenizer,
            length=place.length,
            cache_dir=place.cache_dir,
            max_fault_share=self._max_fault_share,
        )

    def open(self, place: Place) -> TokenCache:
        return self.preparer(place).prepare(workers=self._workers)


@final
class PreparedTokens(TableStorage):
    """A folder that `smd prepare` completed elsewhere."""

    def __init__(self, path: str) -> None:
        self._path = path

    def open(self, place: Place) -> TokenCache:
        return open_prepared(self._path, tokenizer=place.tokenizer, length=place.length)


@final
class StreamedTokens(Storage):
    """Training text is read as it is needed; only the validation split is prepared."""

    def __init__(self, source: FileCorpus, settings: StreamSettings, *, max_fault_share: float) -> None:
        if source.deduplicate:
            raise UserError(
                "data.streaming=true: a stream cannot find duplicates: set data.deduplicate=false, or prepare it"
            )
        self._source = source
        self._settings = settings
        self._max_fault_share = max_fault_share

    def open(self, place: Place) -> TokenCache:
        return ShardPreparer(
            source=self._source,
            tokenizer=place.tokenizer,
            length=place.length,
            cache_dir=place.cache_dir,
            splits=("validation",),
            max_fault_share=self._max_fault_share,
        ).prepare()

    def train_loader(
        self, place: Place, cache: TokenCache, loader: LoaderSettings, *, rank: int, world_size: int
    ) -> TrainLoader | StreamLoader:
        recipe = Recipe(source=self._source, tokenizer=place.tokenizer, length=place.length)
        plan = StreamPlan(
            recipe=recipe,
            settings=self._settings,
            loader=loader,
            rank=rank,
            world_size=world_size,
            counts_path=place.cache_dir / "stream" / f"{recipe.key}.jsonl",
        )
        return StreamLoader(plan, num_workers=loader.num_workers)


@final
class MixedTokens(TableStorage):
    """Corpora in proportions (`MixtureTable`); the validation splits follow each other. seed: of the mixture."""

    def __init__(self, parts: Mapping[str, Storage], weights: dict[str, float], *, seed: int) -> None:
        check_weights(weights, list(parts))
        for name, part in parts.items():
            if isinstance(part, StreamedTokens):
                raise UserError(f"data.parts.{name}.streaming=true: a mixture is made of prepared corpora: set it off")
        self._parts = {name: parts[name] for name in sorted(parts)}
        self._weights = [weights[name] for name in self._parts]
        self._seed = seed

    def open(self, place: Place) -> TokenCache:
        caches = [part.open(place) for part in self._parts.values()]
        train = MixtureTable(tables=[cache.train for cache in caches], weights=self._weights, seed=self._seed)
        validation = ConcatTable([cache.validation for cache in caches])
        splits = {
            split: SplitMeta(
                **{
                    name: sum(vars(cache.meta.splits[split])[name] for cache in caches)
                    for name in vars(caches[0].meta.splits[split])
                }
            )
            for split in ("train", "validation")
        }
        meta = replace(caches[0].meta, key="+".join(cache.meta.key for cache in caches), splits=splits)
        return TokenCache(meta=meta, train=train, validation=validation)


@final
class JoinedSource(TokenSource):
    """Several sources one after the other, to train a tokenizer on."""

    def __init__(self, sources: Mapping[str, TokenSource]) -> None:
        self._sources = dict(sorted(sources.items()))

    def train(self) -> Iterator[Document]:
        for source in self._sources.values():
            yield from source.train()

    def validation(self) -> Iterator[Document]:
        for source in self._sources.values():
            yield from source.validation()

    def fingerprint(self) -> str:
        return "+".join(source.fingerprint() for source in self._sources.values())


@final
class NoSource(TokenSource):
    """Stands for the text of a finished folder of shards, which is not there."""

    def train(self) -> Iterator[Document]:
        raise UserError(
            "data.prepared: the text is not at hand to train a tokenizer on: set data.tokenizer.kind=hub and "
            "data.tokenizer.path to the one the shards were made with"
        )

    def validation(self) -> Iterator[Document]:
        return self.train()

    def fingerprint(self) -> str:
        return "no text"
