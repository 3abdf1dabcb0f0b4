"""Conversations for fine-tuning: where they come from, how they become ids, and the cache they are read from."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from sm_diffusion.data.chat.collate import ROLES, ChatSample, encode_chat
from sm_diffusion.data.corpora.base import (
    Document,
    TokenSource,
    check_fraction,
    find_files,
    in_validation,
    text_of_bytes,
)
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.data.tokenizers.subword import hub_files
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


# --------------------------------------------------------------------------------------------------------- tokenizers


class ChatTokenizer(ABC):
    """From conversations to ids. vocab_size: V, the mask included. pad_id: also ends an answer, as in Dream."""

    vocab_size: int
    mask_id: int
    pad_id: int
    forbidden_ids: frozenset[int] = frozenset()

    @abstractmethod
    def encode(self, messages: Sequence[Mapping[str, str]]) -> ChatSample | None:
        """Prompt and response; None where there is no prompt, or no response of the assistant at the end."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str: ...

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of everything that decides the ids."""

    @abstractmethod
    def files(self) -> dict[str, str]:
        """Name -> content of what it is built from again; see `TextTokenizer.files`."""


def plain_head(turns: Sequence[tuple[str, str]]) -> str:
    """Turns of (role, content) as lines, up to where the assistant's reply starts."""
    return "".join(f"{role}: {content}\n" for role, content in turns) + "assistant: "


class PlainChat(ChatTokenizer):
    """A text tokenizer without a chat template: "role: content" lines, the response ends with the end of text."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size, self.mask_id, self.pad_id = tokenizer.vocab_size, tokenizer.mask_id, tokenizer.eos_id

    def encode(self, messages: Sequence[Mapping[str, str]]) -> ChatSample | None:
        turns = [(ROLES.get(message["role"], message["role"]), message["content"]) for message in messages]
        if len(turns) < 2 or turns[-1][0] != "assistant":
            return None
        prompt, response = self._tokenizer.encode_batch([plain_head(turns[:-1]), turns[-1][1]])
        return ChatSample([*prompt, *response, self.pad_id], len(prompt))

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def fingerprint(self) -> str:
        return digest(f"plain chat 1 {self._tokenizer.fingerprint()}")

    def files(self) -> dict[str, str]:
        return self._tokenizer.files()


class TemplateChat(ChatTokenizer):
    """A tokenizer of transformers with its chat template.

    mask_id:   None: its own mask token.
    forbidden: tokens whose samples are dropped; those it does not know do not count.

    Errors: UserError without a chat template, a mask token, or a token that ends a text.
    """

    def __init__(self, tokenizer: Any, *, name: str, mask_id: int | None, forbidden: Sequence[str]) -> None:
        if not tokenizer.chat_template:
            raise UserError(f"{name}: the tokenizer has no chat template: use the tokenizer of an instruct model")
        mask_id = tokenizer.mask_token_id if mask_id is None else mask_id
        if mask_id is None:
            raise UserError(f"{name}: the tokenizer has no mask token: set data.tokenizer.mask=auto to add one")
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        if pad_id is None:
            raise UserError(f"{name}: the tokenizer has neither a padding token nor an end of text: set pad_token")
        self._tokenizer = tokenizer
        self.mask_id, self.pad_id = int(mask_id), int(pad_id)
        self.vocab_size = max(len(tokenizer), self.mask_id + 1)
        known = tokenizer.get_vocab()
        self.forbidden_ids = frozenset(known[token] for token in forbidden if token in known)

    def encode(self, messages: Sequence[Mapping[str, str]]) -> ChatSample | None:
        return encode_chat(messages, self._tokenizer)

    def decode(self, ids: Sequence[int]) -> str:
        own = [index for index in ids if index < len(self._tokenizer)]
        text: str = self._tokenizer.decode(own, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def fingerprint(self) -> str:
        vocabulary = digest(json.dumps(sorted(self._tokenizer.get_vocab().items())))
        state = [vocabulary, self._tokenizer.chat_template, self.mask_id, self.pad_id, sorted(self.forbidden_ids)]
        return digest(json.dumps(["template chat 1", *state]))

    def files(self) -> dict[str, str]:
        return hub_files(self._tokenizer)
