"""Between the texts of lm-evaluation-harness and the ids of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sm_diffusion.data.chat.format import ChatFormat, stop_ids_of
from sm_diffusion.data.tokenizers.base import TextTokenizer, encode_piece
from sm_diffusion.evaluation.likelihood import Passage
from sm_diffusion.types import UserError


def cut(ids: Sequence[int], stop_ids: frozenset[int]) -> list[int]:
    """Up to the first id that ends an answer."""
    end = next((index for index, token in enumerate(ids) if token in stop_ids), len(ids))
    return list(ids[:end])


class Texts:
    """length: tokens of the longest text. num_truncated: prompts that were cut on the left to fit."""

    def __init__(self, tokenizer: TextTokenizer, chat: ChatFormat | None, length: int) -> None:
        self.tokenizer = tokenizer
        self.chat = chat
        self.length = length
        self.stop_ids = stop_ids_of(tokenizer, chat)
        self.num_truncated = 0

    @property
    def name(self) -> str:
        return f"sm_diffusion-{self.tokenizer.fingerprint()[:16]}"

    def ids(self, text: str) -> list[int]:
        """With a chat template, the spelling of a special token stands for it: prompts arrive rendered."""
        if self.chat is not None and self.tokenizer.normalize(text) == text:
            return self.chat.encode(text)
        return encode_piece(self.tokenizer, text)

    def pair(self, context: str, continuation: str, index: int) -> Passage:
        """The ids of both. Where the context's own ids do not begin the whole's (a trailing space that belongs to the
        next word), the white space at its end counts as the continuation's, as in lm-evaluation-harness.

        An empty context is the end of a text: what stands before a text in training.
        """
        if not context:
            return self._fit([self.tokenizer.eos_id], self.ids(continuation), index, continuation)
        head, whole = self.ids(context), self.ids(context + continuation)
        if whole[: len(head)] != head:
            head = self.ids(context.rstrip())
        return self._fit(head or [self.tokenizer.eos_id], whole[len(head) :], index, continuation)

    def _fit(self, head: list[int], tail: list[int], index: int, continuation: str) -> Passage:
        if not tail:
            raise UserError(f"request {index}: the continuation {continuation!r} has no token in this vocabulary")
        if len(tail) >= self.length:
            raise UserError(
                f"request {index}: the continuation has {len(tail)} tokens, the model takes {self.length} with at "
                "least one before it: shorten it"
            )
        return Passage(tuple(self._last(head, self.length - len(tail))), tuple(tail))

    def windows(self, text: str) -> list[Passage]:
        """A whole text in pieces of length - 1, each given the token before it (first: the end of a text)."""
        ids, size = self.ids(text), self.length - 1
        before = [self.tokenizer.eos_id, *ids]
        return [Passage((before[start],), tuple(ids[start : start + size])) for start in range(0, len(ids), size)]

    def prompt(self, context: str, new_tokens: int, index: int) -> list[int]:
        """The last ids of the context that leave room for the answer."""
        ids = self.ids(context) or [self.tokenizer.eos_id]
        if self.tokenizer.mask_id in ids:
            raise UserError(f"request {index} holds the mask token {self.tokenizer.mask_id}: remove it from the text")
        return self._last(ids, self.length - new_tokens)

    def _last(self, ids: list[int], room: int) -> list[int]:
        self.num_truncated += len(ids) > room
        return ids[-room:]

    def answer(self, ids: Sequence[int], until: Sequence[str]) -> str:
        """The text before the first id or text that ends it."""
        text = self.tokenizer.decode(cut(ids, self.stop_ids))
        for stop in until:
            if stop:
                text = text.split(stop)[0]
        return text

    def render(self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool) -> str:
        return self._talks().render(messages, add_generation_prompt=add_generation_prompt)

    def template(self, wanted: bool | str | None) -> str | None:
        """The chat template, for lm-evaluation-harness's records. A tokenizer has one, so its name must be true."""
        if wanted is False or wanted is None:
            return None
        if isinstance(wanted, str):
            raise UserError(f"--apply_chat_template {wanted}: there is one template only; leave the name out")
        return self._talks().template

    def _talks(self) -> ChatFormat:
        if self.chat is None:
            raise UserError(
                "--apply_chat_template: the model has no chat template (it was trained on plain text); leave it out"
            )
        return self.chat
