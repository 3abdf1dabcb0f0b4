"""The Lightning datamodule of conversations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from sm_diffusion.data.chat.cache import ChatCache, ChatMeta, prepare_chat
from sm_diffusion.data.chat.format import ChatFormat
from sm_diffusion.data.chat.rows import PackedRows, PaddedRows, RowMaker
from sm_diffusion.data.chat.sources import ChatSource
from sm_diffusion.data.datamodule import SequenceDataModule
from sm_diffusion.data.loader import EvalLoader, LoaderSettings, TrainLoader, eval_loader, table_loader


@dataclass(frozen=True, kw_only=True)
class ChatRowSettings:
    """max_tokens: longest sample kept.     min_response_tokens: shortest response kept.
    pads_are_maskable: see `collate`.
    packed_row_tokens: samples share rows of so many tokens; None: a padded row each.
    """

    max_tokens: int
    min_response_tokens: int
    pads_are_maskable: bool
    packed_row_tokens: int | None = None


@final
class ChatDataModule(SequenceDataModule[ChatFormat, ChatCache]):
    """Encodes conversations once and serves padded or packed batches with unmaskable prompts.

    make_tokenizer: called once, in `prepare`.     cache_dir: of encoded samples.
    """

    def __init__(
        self,
        *,
        source: ChatSource,
        make_tokenizer: Callable[[], ChatFormat],
        rows: ChatRowSettings,
        loader: LoaderSettings,
        cache_dir: str | Path,
    ) -> None:
        super().__init__(loader=loader, cache_dir=cache_dir)
        self._source = source
        self._make_tokenizer = make_tokenizer
        self._rows = rows

    def _open(self) -> tuple[ChatFormat, ChatCache]:
        tokenizer = self._make_tokenizer()
        cache = prepare_chat(
            source=self._source,
            tokenizer=tokenizer,
            max_tokens=self._rows.max_tokens,
            min_response_tokens=self._rows.min_response_tokens,
            cache_dir=self._cache_dir,
        )
        return tokenizer, cache

    @property
    def meta(self) -> ChatMeta:
        """Counts of the prepared corpus; call `prepare` first."""
        return self._prepared.meta

    def train_dataloader(self) -> TrainLoader:
        """A loader of `Batch`es with its own resumable state."""
        rank, world_size = self._rank_and_world_size()
        return table_loader(
            self._prepared.train, self._loader, rank=rank, world_size=world_size, finish=self._row_maker()
        )

    def val_dataloader(self) -> EvalLoader:
        """A loader of `Batch`es, this rank's share of the validation split."""
        rank, world_size = self._rank_and_world_size()
        return eval_loader(
            self._prepared.validation, self._loader, rank=rank, world_size=world_size, finish=self._row_maker()
        )

    def _row_maker(self) -> RowMaker:
        rows, pad_id, seed = self._rows, self.tokenizer.pad_id, self._loader.seed
        if rows.packed_row_tokens is None:
            return PaddedRows(pad_id=pad_id, pads_are_maskable=rows.pads_are_maskable, seed=seed)
        return PackedRows(
            pad_id=pad_id,
            pads_are_maskable=rows.pads_are_maskable,
            seed=seed,
            row_tokens=rows.packed_row_tokens,
        )
