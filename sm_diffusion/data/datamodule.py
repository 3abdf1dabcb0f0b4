"""One Lightning datamodule for every source of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

import lightning.pytorch as pl
import torch.distributed

from sm_diffusion.data.loader import EvalLoader, LoaderSettings, TrainLoader
from sm_diffusion.data.prepare import CacheMeta, TokenCache
from sm_diffusion.data.sampler import eval_batches
from sm_diffusion.data.sources import TokenSource
from sm_diffusion.data.storage import CachedTokens, Place, Storage
from sm_diffusion.data.stream import StreamLoader
from sm_diffusion.data.tokenizer import TextTokenizer
from sm_diffusion.data.tokenizer_spec import TokenizerSpec, build_tokenizer


@final
class TokenDataModule(pl.LightningDataModule):
    """Prepares a corpus once and serves it, whatever its source.

    source: the documents.         tokenizer: how they become ids.     length: L, tokens of a sequence.
    loader: how batches are formed.     cache_dir: folder for prepared corpora and trained tokenizers.
    storage: how the tokens are kept; None: one file a split (`prepare_tokens`), for corpora of megabytes.

    `prepare` needs no trainer and may run in any number of processes at once. The loaders shard themselves: Lightning
    leaves them alone, because they are no torch DataLoaders. They take the data-parallel rank and size from the
    attached trainer, else from torch.distributed, else they are the only process.

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
        super().__init__()
        self._source = source
        self._spec = tokenizer
        self._length = length
        self._loader = loader
        self._cache_dir = Path(cache_dir).expanduser()
        self._storage = storage or CachedTokens(source)
        self._tokenizer: TextTokenizer | None = None
        self._cache: TokenCache | None = None

    def prepare(self) -> None:
        """Builds or opens tokenizer and cache; does nothing the second time."""
        if self._cache is None:
            self._tokenizer = build_tokenizer(self._spec, source=self._source, cache_dir=self._cache_dir)
            self._cache = self._storage.open(self._place)

    def prepare_data(self) -> None:
        self.prepare()

    def setup(self, stage: str) -> None:
        self.prepare()

    @property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer; call `prepare` first."""
        assert self._tokenizer is not None, "call prepare() first"
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """V, the mask included; call `prepare` first."""
        return self.tokenizer.vocab_size

    @property
    def meta(self) -> CacheMeta:
        """Counts and settings of the prepared corpus; call `prepare` first."""
        return self._prepared.meta

    @property
    def _place(self) -> Place:
        return Place(tokenizer=self.tokenizer, length=self._length, cache_dir=self._cache_dir)

    @property
    def _prepared(self) -> TokenCache:
        assert self._cache is not None, "call prepare() first"
        return self._cache

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes of the split's normalised text / its tokens, EOS included.

        Bits per byte = nats per token / ln 2 / bytes_per_token.
        """
        counts = self.meta.splits[split]
        return counts.text_bytes / counts.tokens

    def decode(self, ids: Sequence[int]) -> str:
        """Readable text of ids in [0, V)."""
        return self.tokenizer.decode(ids)

    def train_dataloader(self) -> TrainLoader | StreamLoader:
        """A loader of `Batch` (ids_BL, rows_B = row in the global batch) with its own resumable state."""
        rank, world_size = self._rank_and_world_size()
        return self._storage.train_loader(self._place, self._prepared, self._loader, rank=rank, world_size=world_size)

    def val_dataloader(self) -> EvalLoader:
        """A loader of `Batch` (ids_BL, rows_B = index in the validation split), this rank's share."""
        rank, world_size = self._rank_and_world_size()
        table = self._prepared.validation
        batches = eval_batches(
            num_sequences=len(table),
            max_sequences=self._loader.max_validation_sequences,
            batch_sequences=self._loader.eval_batch_sequences,
            rank=rank,
            world_size=world_size,
        )
        return EvalLoader(table=table, batches=batches, num_workers=self._loader.num_workers)

    def _rank_and_world_size(self) -> tuple[int, int]:
        """Of the data-parallel processes: tensor-parallel ones read the same data."""
        if self.trainer is not None:
            shares = self.trainer.distributed_sampler_kwargs
            return (0, 1) if shares is None else (shares["rank"], shares["num_replicas"])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1
