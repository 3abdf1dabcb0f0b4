"""Prompts to ids and answers back to text, with or without a chat template: what evaluation and chat need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from sm_diffusion.data.chat.tokenizers import plain_head
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.files import digest
from sm_diffusion.types import UserError

Messages = Sequence[Mapping[str, str]]


class PromptCodec(ABC):
    """mask_id, pad_id, vocab_size: of the tokenizer. end_ids: tokens that end an answer; text_end_ids: those among them
    that end a whole text.
    chat: messages have a form the model was trained on.
    """

    mask_id: int
    pad_id: int
    vocab_size: int
    end_ids: frozenset[int]
    text_end_ids: frozenset[int]
    chat: bool

    @abstractmethod
    def encode_messages(self, messages: Messages, prefix: str = "") -> list[int]:
        """Ids of a conversation up to where the assistant's reply starts, then those of `prefix`, its given start."""

    @abstractmethod
    def encode_text(self, text: str) -> list[int]:
        """Ids of plain text, no special tokens. UserError where the tokenizer cannot spell it."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of any ids, special tokens spelt out."""

    @abstractmethod
    def template_sha256(self) -> str:
        """Of what turns messages into text; with the prompt's own hash it fixes the ids."""

    def answer(self, ids: Sequence[int], *, turn_ends: bool = True) -> tuple[str, int, bool]:
        """(text before the first end token, tokens of it, whether there was an end token).

        turn_ends: the end of a turn counts, such as <|im_end|>; else only the end of a text does, and <|im_end|> is
            spelt out.
        """
        ends = self.end_ids if turn_ends else self.text_end_ids
        end = next((index for index, token in enumerate(ids) if token in ends), None)
        own = ids if end is None else ids[:end]
        return self.decode(own), len(own), end is not None


class PlainCodec(PromptCodec):
    """A text tokenizer; messages become "role: content" lines, as in fine-tuning without a chat template."""

    def __init__(self, tokenizer: TextTokenizer, *, chat: bool) -> None:
        self._tokenizer = tokenizer
        self.vocab_size, self.mask_id, self.pad_id = tokenizer.vocab_size, tokenizer.mask_id, tokenizer.eos_id
        self.end_ids = self.text_end_ids = frozenset({tokenizer.eos_id})
        self.chat = chat

    def encode_messages(self, messages: Messages, prefix: str = "") -> list[int]:
        return self.encode_text(plain_head([(message["role"], message["content"]) for message in messages]) + prefix)

    def encode_text(self, text: str) -> list[int]:
        if self._tokenizer.normalize(text).split() != text.split():
            raise UserError(
                f"the checkpoint's tokenizer ({type(self._tokenizer).__name__}) cannot spell {text[:30]!r}...: "
                "this task needs a model of bytes or subwords"
            )
        return self._tokenizer.encode_batch([text])[0]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def template_sha256(self) -> str:
        return digest(b"plain chat: role: content")


class TemplateCodec(PromptCodec):
    """A tokenizer of transformers, with its chat template where it has one.

    mask_id: None: the tokenizer's own.     Raises UserError without a mask or an end token.
    """

    def __init__(self, tokenizer: Any, *, name: str, mask_id: int | None = None) -> None:
        mask_id = tokenizer.mask_token_id if mask_id is None else mask_id
        if mask_id is None:
            raise UserError(f"{name}: the tokenizer has no mask token: use the model's own tokenizer")
        ends = [token for token in (tokenizer.eos_token_id, tokenizer.pad_token_id) if token is not None]
        if not ends:
            raise UserError(f"{name}: the tokenizer has neither a padding token nor an end of text: set pad_token")
        self._tokenizer = tokenizer
        self.mask_id, self.pad_id = int(mask_id), int(ends[-1])
        self.vocab_size = max(len(tokenizer), self.mask_id + 1)
        self.chat = bool(tokenizer.chat_template)
        self.text_end_ids = frozenset(map(int, ends))
        self.end_ids = self.text_end_ids | frozenset(self._turn_ends())

    def _turn_ends(self) -> list[int]:
        """The first special token the template puts after a reply, such as <|im_end|>."""
        if not self.chat:
            return []
        asked = [{"role": "user", "content": "a"}]
        start = len(self._render(asked, True))
        reply = self._render([*asked, {"role": "assistant", "content": "b"}], False)[start:]
        special = set(self._tokenizer.get_added_vocab().values()) | set(self._tokenizer.all_special_ids)
        return [token for token in reply if token in special][:1]

    def _render(self, messages: Messages, prompt: bool) -> list[int]:
        # Without return_dict=False transformers 5 gives a mapping instead of the ids.
        ids = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=True, add_generation_prompt=prompt, return_dict=False
        )
        return [int(token) for token in ids]

    def encode_messages(self, messages: Messages, prefix: str = "") -> list[int]:
        return [*self._render(messages, True), *self.encode_text(prefix)]

    def encode_text(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False)) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        own = [index for index in ids if index < len(self._tokenizer)]
        text: str = self._tokenizer.decode(own, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def template_sha256(self) -> str:
        return digest(str(self._tokenizer.chat_template))
