"""Published fine-tuning mixes as conversations, from the hub or folders in its layout.

tulu-3-sft-mixture and smoltalk keep a list `messages` of {role, content}; Ling-Coder-SFT the same with the roles HUMAN,
ASSISTANT and SYSTEM, mapped here. What a sample may be long and which tokens it may hold is decided once it is encoded
(`ChatLimits`); here go the conversations that cannot be a prompt and a response.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sm_diffusion.data.chat.format import ROLES
from sm_diffusion.data.chat.sources import ChatSource, Conversation
from sm_diffusion.data.corpora.base import check_fraction, in_validation
from sm_diffusion.data.corpora.hub import HubRepository, Located, Location
from sm_diffusion.data.corpora.records import Record, Slice, count_records, plan_slices, read_slice
from sm_diffusion.files import digest
from sm_diffusion.types import UserError

TOOL_ROLES = frozenset({"tool", "function", "ipython", "observation"})
TOOL_MARKS = ("<tool_call>", "</tool_call>", "<tool_response>")
MIX_VERSION = 1


@dataclass(frozen=True)
class MessageFiles:
    """One part of a mix. patterns: of its files.     field: that holds the messages."""

    location: Location
    patterns: tuple[str, ...]
    field: str = "messages"


class ChatMix(ChatSource):
    """The conversations of all parts, one part after the other.

    validation_fraction: in (0, 1), by a stable hash of the text.
    max_samples:         conversations read in all, evenly spread over every part (published: 300,000); None: all.

    `refused` counts what was left out, by reason, once a split has been read. Errors: UserError, see `Location`, and
    when not one conversation is usable.
    """

    def __init__(self, *, parts: Sequence[MessageFiles], validation_fraction: float, max_samples: int | None) -> None:
        super().__init__()
        check_fraction(validation_fraction)
        if max_samples is not None and max_samples < 1:
            raise UserError(f"data.max_samples={max_samples}: must be at least 1, or null for all")
        self._parts = list(parts)
        self._fraction = validation_fraction
        self._max_samples = max_samples

    def conversations(self, split: str) -> Iterator[Conversation]:
        wanted = split == "validation"
        self.refused = Counter()
        usable = 0
        for chat in self._every():
            usable += 1
            if in_validation(chat.text, self._fraction) == wanted:
                yield chat
        if not usable:
            listed = ", ".join(f"{reason} {number:,}" for reason, number in sorted(self.refused.items())) or "none"
            raise UserError(f"data: no usable conversation (refused: {listed}): check the files and messages_field")

    def fingerprint(self) -> str:
        settings: list[Any] = [MIX_VERSION, self._fraction, self._max_samples]
        for part, located in zip(self._parts, self._located, strict=True):
            settings.append([part.field, part.patterns, located.revision, located.files])
        return digest(json.dumps(settings))

    @cached_property
    def _located(self) -> list[Located]:
        return [part.location.locate(part.patterns) for part in self._parts]

    @cached_property
    def _slices(self) -> list[tuple[MessageFiles, Located, Slice, int]]:
        """Every slice with the number of its records."""
        found = []
        for part, located in zip(self._parts, self._located, strict=True):
            if isinstance(part.location, HubRepository) and part.location.download:
                part.location.fetch(located, part.patterns)
            for file in located.files:
                for piece in plan_slices(located.root, file.name, size=file.size, rows=100_000, num_bytes=256_000_000):
                    found.append((part, located, piece, count_records(located.root, piece)))
        return found

    def _every(self) -> Iterator[Conversation]:
        total = sum(count for *_, count in self._slices)
        limit = total if self._max_samples is None else min(total, self._max_samples)
        number = 0
        for part, located, piece, _ in self._slices:
            for place, record in enumerate(read_slice(located.root, piece, fields=[part.field])):
                chosen = (number + 1) * limit // total > number * limit // total
                number += 1
                if not chosen:
                    continue
                messages, reason = usable_messages(record, part.field)
                if reason is None:
                    yield Conversation(messages, f"{Path(piece.file).name}, record {place} from {piece.start}")
                else:
                    self.refused[reason] += 1


def usable_messages(record: Record, field: str) -> tuple[list[dict[str, str]], str | None]:
    """([{role, content}, ...], None) with the roles system, user and assistant, ending with the assistant's response.

    Else ([], reason): the record's own problem, no_messages, not_role_and_content, tool_call, no_prompt, no_response.
    """
    if record.problem is not None:
        return [], record.problem
    messages = record.fields.get(field)
    if not isinstance(messages, list) or not messages:
        return [], "no_messages"
    turns = []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            return [], "not_role_and_content"
        if role.lower() in TOOL_ROLES or any(mark in content for mark in TOOL_MARKS):
            return [], "tool_call"
        turns.append({"role": ROLES.get(role, role), "content": content})
    if turns[-1]["role"] != "assistant" or not turns[-1]["content"].strip():
        return [], "no_response"
    if len(turns) < 2:
        return [], "no_prompt"
    return turns, None
