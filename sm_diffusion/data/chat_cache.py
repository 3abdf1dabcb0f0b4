"""Encoded conversations on disk, and the loaders that make padded batches of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sm_diffusion.data.cache import build_once
from sm_diffusion.data.chat import ChatSource, ChatTokenizer
from sm_diffusion.data.chat_collate import ChatLimits, ChatSample, collate, extra_padding, keep
from sm_diffusion.data.loader import EvalLoader, TrainLoader
from sm_diffusion.types import Batch, UserError

FORMAT_VERSION = 1
SPLITS = ("train", "validation")
_PADDING_TAG = 0xC4A7  # keeps these random numbers apart from all others


@dataclass(frozen=True)
class ChatSplit:
    """sequences: samples kept. dropped: too long, too short, with a tool call, or no answer at the end.

    tokens: of the responses. text_bytes: UTF-8 bytes of the responses as text.
    """

    sequences: int
    dropped: int
    tokens: int
    text_bytes: int


@dataclass(frozen=True)
class ChatMeta:
    """Counts of a prepared corpus."""

    splits: dict[str, ChatSplit]


class ChatTable:
    """Samples of one split, in memory. A row is [number of tokens, prompt length, tokens ..., zeros].

    ids_M: int32, all samples one after the other. ends_N: where each ends. prompts_N: their prompt lengths.
    """

    def __init__(self, ids_M: NDArray[np.int32], ends_N: NDArray[np.int64], prompts_N: NDArray[np.int64]) -> None:
        self.length = 2 + int(np.diff(ends_N, prepend=0).max(initial=0))
        self._ids_M = ids_M
        self._ends_N = ends_N
        self._prompts_N = prompts_N

    def __len__(self) -> int:
        return len(self._ends_N)

    def rows(self, indices: Sequence[int]) -> NDArray[np.int64]:
        """int64 (len(indices), 2 + the longest of them)."""
        starts = [int(self._ends_N[index - 1]) if index else 0 for index in indices]
        spans = list(zip(starts, self._ends_N[list(indices)].tolist(), strict=True))
        out = np.zeros((len(spans), 2 + max(end - start for start, end in spans)), dtype=np.int64)
        for row, (index, (start, end)) in enumerate(zip(indices, spans, strict=True)):
            out[row, 0], out[row, 1] = end - start, self._prompts_N[index]
            out[row, 2 : 2 + end - start] = self._ids_M[start:end]
        return out


@dataclass(frozen=True)
class ChatCache:
    """A prepared corpus."""

    meta: ChatMeta
    train: ChatTable
    validation: ChatTable


def prepare_chat(
    *, source: ChatSource, tokenizer: ChatTokenizer, max_tokens: int, min_response_tokens: int, cache_dir: Path
) -> ChatCache:
    """Opens the cache of these settings in `cache_dir`, building it first if need be.

    Errors: UserError for a split in which no sample is left, naming what was dropped.
    """
    limits = ChatLimits(
        max_tokens=max_tokens, min_response_tokens=min_response_tokens, forbidden_ids=tokenizer.forbidden_ids
    )
    settings = [FORMAT_VERSION, source.fingerprint(), tokenizer.fingerprint(), max_tokens, min_response_tokens]
    folder = cache_dir / f"chat-{hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:24]}"

    def build(new: Path) -> None:
        splits = {split: asdict(_encode(new, split, source, tokenizer, limits)) for split in SPLITS}
        (new / "meta.json").write_text(json.dumps(splits), encoding="utf-8")

    build_once(folder, build=build, check=_damage)
    splits = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
    meta = ChatMeta({split: ChatSplit(**splits[split]) for split in SPLITS})
    return ChatCache(meta, *(_open(folder, split) for split in SPLITS))


def _encode(
    folder: Path, split: str, source: ChatSource, tokenizer: ChatTokenizer, limits: ChatLimits
) -> ChatSplit:
    parts: list[NDArray[np.int32]] = []
    prompts: list[int] = []
    dropped = tokens = text_bytes = 0
    for chat in source.conversations(split):
        sample = tokenizer.encode(chat.messages)
        if sample is None or not keep(sample, limits):
            dropped += 1
            continue
        parts.append(np.asarray(sample.ids, dtype=np.int32))
        prompts.append(sample.prompt_length)
        tokens += len(sample.ids) - sample.prompt_length
        text_bytes += len(chat.messages[-1]["content"].encode())
    if not parts:
        raise UserError(
            f"data: no conversation is left for {split} ({dropped} dropped: too long for data.length="
            f"{limits.max_tokens}, a response under {limits.min_response_tokens} tokens, a tool call, or no answer of "
            f"the assistant at the end): raise data.length, add conversations or set data.validation_paths"
        )
    np.save(folder / f"{split}-ids.npy", np.concatenate(parts))
    np.save(folder / f"{split}-ends.npy", np.cumsum([len(part) for part in parts], dtype=np.int64))
    np.save(folder / f"{split}-prompts.npy", np.asarray(prompts, dtype=np.int64))
    return ChatSplit(len(parts), dropped, tokens, text_bytes)


def _open(folder: Path, split: str) -> ChatTable:
    return ChatTable(*(np.load(folder / f"{split}-{part}.npy", mmap_mode="r") for part in ("ids", "ends", "prompts")))


def _damage(folder: Path) -> str | None:
    try:
        splits = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        counts = {split: ChatSplit(**splits[split]).sequences for split in SPLITS}
        tables = {split: _open(folder, split) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    wrong = [split for split in SPLITS if len(tables[split]) != counts[split]]
    return f"{wrong[0]} is not whole" if wrong else None


# ------------------------------------------------------------------------------------------------------------ loaders


@dataclass(frozen=True)
class Padding:
    """How rows become a batch. seed: of the extra padding, U{0 .. 49} a micro-batch."""

    pad_id: int
    pads_are_maskable: bool
    seed: int

    def batch(self, packed: Batch, *, step: int) -> Batch:
        """packed: rows of a `ChatTable`. The padding follows (seed, step, first row): no rank, no worker."""
        rows = packed.ids_BL.tolist()
        samples = [ChatSample(row[2 : 2 + row[0]], row[1]) for row in rows]
        first = int(packed.rows_B[0])
        word = np.random.Philox(key=[self.seed, _PADDING_TAG], counter=[first, step, 0, 0]).random_raw(1)[0]
        return collate(
            samples,
            packed.rows_B,
            pad_id=self.pad_id,
            extra=extra_padding(float(word >> np.uint64(11)) * 2.0**-53),
            pads_are_maskable=self.pads_are_maskable,
        )


class ChatTrainLoader:
    """A `TrainLoader` over a `ChatTable` whose rows are padded into batches; resumes as it does."""

    def __init__(self, inner: TrainLoader, padding: Padding) -> None:
        self._inner = inner
        self._padding = padding

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Iterator[Batch]:
        for packed in self._inner:
            state = self._inner.state_dict()
            done = state["global_batches"] * state["accumulation"] + state["micro_steps"]
            yield self._padding.batch(packed, step=(done - 1) // state["accumulation"])

    def state_dict(self) -> dict[str, int]:
        return self._inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._inner.load_state_dict(state)


class ChatEvalLoader:
    """The same batches at every iteration; a row's padding follows its index."""

    def __init__(self, inner: EvalLoader, padding: Padding) -> None:
        self._inner = inner
        self._padding = padding

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Iterator[Batch]:
        for packed in self._inner:
            yield self._padding.batch(packed, step=0)


def as_rows(samples: Sequence[ChatSample]) -> ChatTable:
    """A table of given samples, for tests and small uses."""
    ids = [torch.tensor(sample.ids, dtype=torch.int32).numpy() for sample in samples]
    ends = np.cumsum([len(part) for part in ids], dtype=np.int64)
    return ChatTable(np.concatenate(ids), ends, np.asarray([sample.prompt_length for sample in samples]))
