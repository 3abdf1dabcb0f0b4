"""Conversations for fine-tuning: where they come from."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from sm_diffusion.data.corpora.base import (
    Document,
    TokenSource,
    check_fraction,
    find_files,
    in_validation,
    text_of_bytes,
)
from sm_diffusion.files import digest, parse_json, sha256_of
from sm_diffusion.types import UserError


class Conversation(NamedTuple):
    """messages: [{"role", "content"}, ...]. name: where it came from, for error messages."""

    messages: list[dict[str, str]]
    name: str

    @property
    def text(self) -> str:
        """All of it as text: what a tokenizer is trained on and the split is made by."""
        return "\n".join(f"{message['role']}: {message['content']}" for message in self.messages)


class ChatSource(TokenSource):
    """Conversations in two parts; as a `TokenSource`, their texts. The same in the same order every time.

    refused: what was left out of both parts, by reason, once one was read to its end.
    """

    def __init__(self) -> None:
        self.refused: Counter[str] = Counter()

    @abstractmethod
    def conversations(self, split: str) -> Iterator[Conversation]:
        """Of "train" or "validation"."""

    def train(self) -> Iterator[Document]:
        return (Document(chat.text, chat.name) for chat in self.conversations("train"))

    def validation(self) -> Iterator[Document]:
        return (Document(chat.text, chat.name) for chat in self.conversations("validation"))


class ChatFiles(ChatSource):
    """Local .jsonl files, one conversation a line.

    messages_field:      the field that holds the messages.
    validation_fraction: in (0, 1), share chosen by a stable hash of the text; unused with `validation_paths`.

    Errors: UserError with file and line for anything that is no list of {"role", "content"} texts.
    """

    def __init__(
        self,
        *,
        paths: Sequence[str],
        messages_field: str,
        validation_fraction: float,
        validation_paths: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        check_fraction(validation_fraction)
        self._field = messages_field
        self._fraction = validation_fraction
        self._files = self._jsonl(paths, "data.paths")
        self._validation_files = self._jsonl(validation_paths, "data.validation_paths") if validation_paths else None

    @staticmethod
    def _jsonl(paths: Sequence[str], key: str) -> list[Path]:
        files = find_files(paths, key)
        if other := [path for path in files if path.suffix != ".jsonl"]:
            raise UserError(f"{key}: {other[0]} is no .jsonl file: give files of one conversation a line")
        return files

    def conversations(self, split: str) -> Iterator[Conversation]:
        wanted = split == "validation"
        if self._validation_files is not None:
            yield from self._read(self._validation_files if wanted else self._files)
            return
        for chat in self._read(self._files):
            if in_validation(chat.text, self._fraction) == wanted:
                yield chat

    def fingerprint(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        parts: list[str | bytes] = [json.dumps(["chat_files", 1, self._field, self._fraction])]
        for group in (self._files, self._validation_files or []):
            parts += [b"|group|", *(bytes.fromhex(sha256_of(path)) for path in group)]
        return digest(*parts)

    def _read(self, files: list[Path]) -> Iterator[Conversation]:
        for path in files:
            offset = 0
            with path.open("rb") as file:
                for number, raw in enumerate(file, start=1):
                    line = text_of_bytes(raw, path, offset=offset)
                    offset += len(raw)
                    if line.strip():
                        yield self._conversation(line, f"{path}, line {number}")

    def _conversation(self, line: str, where: str) -> Conversation:
        record = parse_json(line, where, advice="repair the line")
        messages = record.get(self._field) if isinstance(record, dict) else None
        if messages is None:
            raise UserError(f"{where}: no field {self._field!r}: set data.messages_field to the one with the messages")
        texts = ("role", "content")
        if not isinstance(messages, list) or not all(
            isinstance(message, dict) and all(isinstance(message.get(name), str) for name in texts)
            for message in messages
        ):
            raise UserError(f'{where}: {self._field} must be a list of {{"role": text, "content": text}}')
        return Conversation([{name: message[name] for name in texts} for message in messages], where)
