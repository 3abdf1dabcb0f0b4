"""The Lightning datamodules: what all share, and the one for every source of text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar, final

import lightning.pytorch as pl
import torch.distributed

from sm_diffusion.data.corpora.base import TokenSource
from sm_diffusion.data.loader import EvalLoader, LoaderSettings, TrainLoader, eval_loader
from sm_diffusion.data.stores.arrow_cache import CacheMeta, TokenCache
from sm_diffusion.data.stores.base import CachedTokens, Place, Storage
from sm_diffusion.data.stores.stream import StreamLoader
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.data.tokenizers.build import TokenizerSpec, build_tokenizer


class SplitCounts(Protocol):
    """What is known of every split, whatever it holds. text_bytes: UTF-8 bytes of the text behind the tokens."""

    @property
    def sequences(self) -> int: ...
    @property
    def tokens(self) -> int: ...
    @property
    def text_bytes(self) -> int: ...


class CorpusMeta(Protocol):
    """Counts of a prepared corpus, by split."""

    @property
    def splits(self) -> Mapping[str, SplitCounts]: ...


class Vocabulary(Protocol):
    """What every tokenizer says of itself. vocab_size: V, the mask included."""

    @property
    def vocab_size(self) -> int: ...


TokenizerT = TypeVar("TokenizerT", bound=Vocabulary)
CacheT = TypeVar("CacheT")


class SequenceDataModule(pl.LightningDataModule, ABC, Generic[TokenizerT, CacheT]):
    """Prepares a corpus once and serves batches of it.

    `prepare` needs no trainer and may run in any number of processes at once. The loaders shard themselves: Lightning
    leaves them alone, because they are no torch DataLoaders. They take the data-parallel rank and size from the
    attached trainer, else from torch.distributed, else they are the only process.
    """

    def __init__(self, *, loader: LoaderSettings, cache_dir: str | Path) -> None:
        super().__init__()
        self._loader = loader
        self._cache_dir = Path(cache_dir).expanduser()
        self._tokenizer: TokenizerT | None = None
        self._cache: CacheT | None = None

    @abstractmethod
    def _open(self) -> tuple[TokenizerT, CacheT]:
        """Tokenizer and cache, built first if need be. Called once."""

    @property
    @abstractmethod
    def meta(self) -> CorpusMeta:
        """Counts of the prepared corpus; call `prepare` first."""

    def prepare(self) -> None:
        """Builds or opens tokenizer and cache; does nothing the second time."""
        if self._cache is None:
            self._tokenizer, self._cache = self._open()

    def prepare_data(self) -> None:
        self.prepare()

    def setup(self, stage: str) -> None:
        self.prepare()

    @property
    def tokenizer(self) -> TokenizerT:
        """The tokenizer; call `prepare` first."""
        assert self._tokenizer is not None, "call prepare() first"
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """V, the mask included; call `prepare` first."""
        return self.tokenizer.vocab_size

    @property
    def _prepared(self) -> CacheT:
        assert self._cache is not None, "call prepare() first"
        return self._cache

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes of the split's text / its tokens, ends included; of conversations, of their responses.

        Bits per byte = nats per token / ln 2 / bytes_per_token. The fine-tuning loss is no likelihood bound, so there
        bits per byte compare runs with each other only.
        """
        counts = self.meta.splits[split]
        return counts.text_bytes / counts.tokens

    def _rank_and_world_size(self) -> tuple[int, int]:
        """Of the data-parallel processes: tensor-parallel ones read the same data."""
        if self.trainer is not None:
            shares = self.trainer.distributed_sampler_kwargs
            return (0, 1) if shares is None else (shares["rank"], shares["num_replicas"])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1


@final
class TokenDataModule(SequenceDataModule[TextTokenizer, TokenCache]):
    """Text from any source.

    source: the documents.         tokenizer: how they become ids.     length: L, tokens of a sequence.
    loader: how batches are formed.     cache_dir: folder for prepared corpora and trained tokenizers.
    storage: how the tokens are kept; None: one file a split (`prepare_tokens`), for corpora of megabytes.

    Errors: UserError, see `prepare_tokens`, `build_tokenizer`, `GlobalBatchSampler` and `eval_batches`.
    """

    def __init__(
        self,
        *,
        source: TokenSource,
        tokenizer: TokenizerSpec,
        length: int,
        loader: LoaderSettings,
        cache_dir: str | Path,
        storage: Storage | None = None,
    ) -> None:
        super().__init__(loader=loader, cache_dir=cache_dir)
        self._source = source
        self._spec = tokenizer
        self._length = length
        self._storage = storage or CachedTokens(source)

    def _open(self) -> tuple[TextTokenizer, TokenCache]:
        tokenizer = build_tokenizer(self._spec, source=self._source, cache_dir=self._cache_dir)
        return tokenizer, self._storage.open(self._place_of(tokenizer))

    @property
    def meta(self) -> CacheMeta:
        """Counts and settings of the prepared corpus; call `prepare` first."""
        return self._prepared.meta

    def _place_of(self, tokenizer: TextTokenizer) -> Place:
        return Place(tokenizer=tokenizer, length=self._length, cache_dir=self._cache_dir)

    def decode(self, ids: Sequence[int]) -> str:
        """Readable text of ids in [0, V)."""
        return self.tokenizer.decode(ids)

    def train_dataloader(self) -> TrainLoader | StreamLoader:
        """A loader of `Batch` (ids_BL, rows_B = row in the global batch) with its own resumable state."""
        rank, world_size = self._rank_and_world_size()
        place = self._place_of(self.tokenizer)
        return self._storage.train_loader(place, self._prepared, self._loader, rank=rank, world_size=world_size)

    def val_dataloader(self) -> EvalLoader:
        """A loader of `Batch` (ids_BL, rows_B = index in the validation split), this rank's share."""
        rank, world_size = self._rank_and_world_size()
        return eval_loader(self._prepared.validation, self._loader, rank=rank, world_size=world_size)
