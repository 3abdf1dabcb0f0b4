"""Encoded conversations on disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sm_diffusion.data.chat.collate import ChatLimits, ChatSample, refusal
from sm_diffusion.data.chat.format import ChatFormat
from sm_diffusion.data.chat.sources import ChatSource
from sm_diffusion.data.stores.cache import build_once
from sm_diffusion.files import digest, read_object
from sm_diffusion.types import UserError

FORMAT_VERSION = 2
SPLITS = ("train", "validation")


@dataclass(frozen=True)
class ChatSplit:
    """sequences: samples kept. refused: conversations dropped once encoded, by reason (`refusal`).

    tokens: of the responses. text_bytes: UTF-8 bytes of the responses as text.
    """

    sequences: int
    refused: dict[str, int]
    tokens: int
    text_bytes: int


@dataclass(frozen=True)
class ChatMeta:
    """Counts of a prepared corpus. refused: by the source, before a conversation belonged to a split."""

    splits: dict[str, ChatSplit]
    refused: dict[str, int]


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
    *, source: ChatSource, tokenizer: ChatFormat, max_tokens: int, min_response_tokens: int, cache_dir: Path
) -> ChatCache:
    """Opens the cache of these settings in `cache_dir`, building it first if need be.

    Errors: UserError for a split in which no sample is left, naming what was dropped.
    """
    limits = ChatLimits(
        max_tokens=max_tokens, min_response_tokens=min_response_tokens, forbidden_ids=tokenizer.forbidden_ids
    )
    settings = [FORMAT_VERSION, source.fingerprint(), tokenizer.fingerprint(), max_tokens, min_response_tokens]
    folder = cache_dir / f"chat-{digest(json.dumps(settings))[:24]}"

    def build(new: Path) -> None:
        splits = {split: _encode(new, split, source, tokenizer, limits) for split in SPLITS}
        meta = ChatMeta(splits, dict(sorted(source.refused.items())))
        (new / "meta.json").write_text(json.dumps(asdict(meta), indent=1) + "\n", encoding="utf-8")

    build_once(folder, build=build, check=_damage)
    return ChatCache(_read_meta(folder), *(_open(folder, split) for split in SPLITS))


def _read_meta(folder: Path) -> ChatMeta:
    fields = read_object(folder / "meta.json")
    return ChatMeta({split: ChatSplit(**fields["splits"][split]) for split in SPLITS}, fields["refused"])


def _encode(
    folder: Path, split: str, source: ChatSource, tokenizer: ChatFormat, limits: ChatLimits
) -> ChatSplit:
    parts: list[NDArray[np.int32]] = []
    prompts: list[int] = []
    tokens = text_bytes = 0
    refused: Counter[str] = Counter()
    for chat in source.conversations(split):
        sample = tokenizer.sample(chat.messages)
        reason = refusal(sample, limits)
        if sample is None or reason is not None:
            refused[str(reason)] += 1
            continue
        parts.append(np.asarray(sample.ids, dtype=np.int32))
        prompts.append(sample.prompt_length)
        tokens += len(sample.ids) - sample.prompt_length
        text_bytes += len(chat.messages[-1]["content"].encode())
    if not parts:
        listed = ", ".join(f"{reason} {number:,}" for reason, number in sorted(refused.items())) or "none"
        raise UserError(
            f"data: no conversation is left for {split} (refused: {listed}; data.length={limits.max_tokens}, "
            f"data.min_response_tokens={limits.min_response_tokens}): raise data.length, add conversations or set "
            f"data.validation_paths"
        )
    np.save(folder / f"{split}-ids.npy", np.concatenate(parts))
    np.save(folder / f"{split}-ends.npy", np.cumsum([len(part) for part in parts], dtype=np.int64))
    np.save(folder / f"{split}-prompts.npy", np.asarray(prompts, dtype=np.int64))
    return ChatSplit(len(parts), dict(sorted(refused.items())), tokens, text_bytes)


def _open(folder: Path, split: str) -> ChatTable:
    return ChatTable(*(np.load(folder / f"{split}-{part}.npy", mmap_mode="r") for part in ("ids", "ends", "prompts")))


def _damage(folder: Path) -> str | None:
    try:
        meta = _read_meta(folder)
        counts = {split: meta.splits[split].sequences for split in SPLITS}
        tables = {split: _open(folder, split) for split in SPLITS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        return str(error)
    wrong = [split for split in SPLITS if len(tables[split]) != counts[split]]
    return f"{wrong[0]} is not whole" if wrong else None


def as_rows(samples: Sequence[ChatSample]) -> ChatTable:
    """A table of given samples, for tests and small uses."""
    ids = [np.asarray(sample.ids, dtype=np.int32) for sample in samples]
    ends = np.cumsum([len(part) for part in ids], dtype=np.int64)
    return ChatTable(np.concatenate(ids), ends, np.asarray([sample.prompt_length for sample in samples]))
