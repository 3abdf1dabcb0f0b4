"""The Lightning datamodule of conversations, with the same face as `TokenDataModule`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import final

import lightning.pytorch as pl
import torch.distributed

from sm_diffusion.data.chat import ChatSource, ChatTokenizer
from sm_diffusion.data.chat_cache import (
    ChatCache,
    ChatEvalLoader,
    ChatMeta,
    ChatTable,
    ChatTrainLoader,
    Padding,
    prepare_chat,
)
from sm_diffusion.data.loader import EvalLoader, LoaderSettings, TrainLoader
from sm_diffusion.data.sampler import GlobalBatchSampler, eval_batches


@final
class ChatDataModule(pl.LightningDataModule):
    """Encodes conversations once and serves padded batches with unmaskable prompts.

    make_tokenizer: called once, in `prepare`.     max_tokens: longest sample kept.     cache_dir: of encoded samples.
    """

    def __init__(
        self,
        *,
        source: ChatSource,
        make_tokenizer: Callable[[], ChatTokenizer],
        max_tokens: int,
        min_response_tokens: int,
        pads_are_maskable: bool,
        loader: LoaderSettings,
        cache_dir: str | Path,
    ) -> None:
        super().__init__()
        self._source = source
        self._make_tokenizer = make_tokenizer
        self._max_tokens = max_tokens
        self._min_response_tokens = min_response_tokens
        self._pads_are_maskable = pads_are_maskable
        self._loader = loader
        self._cache_dir = Path(cache_dir).expanduser()
        self._tokenizer: ChatTokenizer | None = None
        self._cache: ChatCache | None = None

    def prepare(self) -> None:
        """Builds or opens tokenizer and cache; does nothing the second time."""
        if self._cache is None:
            self._tokenizer = self._make_tokenizer()
            self._cache = prepare_chat(
                source=self._source,
                tokenizer=self._tokenizer,
                max_tokens=self._max_tokens,
                min_response_tokens=self._min_response_tokens,
                cache_dir=self._cache_dir,
            )

    def prepare_data(self) -> None:
        self.prepare()

    def setup(self, stage: str) -> None:
        self.prepare()

    @property
    def tokenizer(self) -> ChatTokenizer:
        """The tokenizer; call `prepare` first."""
        assert self._tokenizer is not None, "call prepare() first"
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        """V, the mask included."""
        return self.tokenizer.vocab_size

    @property
    def meta(self) -> ChatMeta:
        """Counts of the prepared corpus."""
        return self._prepared.meta

    @property
    def _prepared(self) -> ChatCache:
        assert self._cache is not None, "call prepare() first"
        return self._cache

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes of the responses / their tokens, ends included. The fine-tuning loss is no likelihood bound, so
        bits per byte of it compare runs with each other only."""
        counts = self.meta.splits[split]
        return counts.text_bytes / counts.tokens

    def train_dataloader(self) -> ChatTrainLoader:
        """A loader of padded `Batch`es with its own resumable state."""
        rank, world_size = self._rank_and_world_size()
        table, limit = self._prepared.train, self._loader.max_train_sequences
        sampler = GlobalBatchSampler(
            num_sequences=len(table) if limit is None else min(limit, len(table)),
            global_batch_sequences=self._loader.global_batch_sequences,
            micro_batch_sequences=self._loader.micro_batch_sequences,
            seed=self._loader.seed,
            rank=rank,
            world_size=world_size,
        )
        inner = TrainLoader(table=table, sampler=sampler, num_workers=self._loader.num_workers)
        return ChatTrainLoader(inner, self._padding())

    def val_dataloader(self) -> ChatEvalLoader:
        """A loader of padded `Batch`es, this rank's share of the validation split."""
        rank, world_size = self._rank_and_world_size()
        table: ChatTable = self._prepared.validation
        batches = eval_batches(
            num_sequences=len(table),
            max_sequences=self._loader.max_validation_sequences,
            batch_sequences=self._loader.eval_batch_sequences,
            rank=rank,
            world_size=world_size,
        )
        inner = EvalLoader(table=table, batches=batches, num_workers=self._loader.num_workers)
        return ChatEvalLoader(inner, self._padding())

    def _padding(self) -> Padding:
        return Padding(self.tokenizer.pad_id, self._pads_are_maskable, self._loader.seed)

    def _rank_and_world_size(self) -> tuple[int, int]:
        """Of the data-parallel processes."""
        if self.trainer is not None:
            shares = self.trainer.distributed_sampler_kwargs
            return (0, 1) if shares is None else (shares["rank"], shares["num_replicas"])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1
