"""How a trained model is talked to: a conversation becomes a prompt, as the model saw it in training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.files import digest
from sm_diffusion.types import UserError

Messages = Sequence[Mapping[str, str]]  # [{"role": "system" | "user" | "assistant", "content": text}, ...]


class ChatFace(ABC):
    """stop_ids: an answer ends before the first of them. template: what decides the prompt, for records and caches."""

    stop_ids: frozenset[int]
    template: str

    @abstractmethod
    def render(self, messages: Messages, *, add_generation_prompt: bool = True) -> str:
        """The prompt as text, up to where the assistant's answer starts."""

    @abstractmethod
    def encode(self, rendered: str) -> list[int]:
        """Ids of a rendered prompt; where the template has special tokens, their spelling stands for them."""

    def prompt(self, messages: Messages) -> list[int]:
        return self.encode(self.render(messages))

    def fingerprint(self) -> str:
        return digest(self.template)


class PlainFace(ChatFace):
    """ "role: content" lines, as `PlainChat` trains them; the answer ends with the end of text."""

    template = "{role}: {content}\\n ... assistant: "

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self.stop_ids = frozenset({tokenizer.eos_id})

    def render(self, messages: Messages, *, add_generation_prompt: bool = True) -> str:
        lines = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        # Without it the last message is an answer that has been begun: what follows goes on from there.
        return lines + "assistant: " if add_generation_prompt else lines.removesuffix("\n")

    def encode(self, rendered: str) -> list[int]:
        return self._tokenizer.encode_batch([rendered])[0]


class TemplateFace(ChatFace):
    """The chat template of a tokenizer of transformers. UserError without one."""

    def __init__(self, tokenizer: Any, *, name: str) -> None:
        if not tokenizer.chat_template:
            raise UserError(f"{name}: the tokenizer has no chat template: use the tokenizer of an instruct model")
        self._tokenizer = tokenizer
        self.template = str(tokenizer.chat_template)
        ends = {tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
        self.stop_ids = frozenset(int(token) for token in ends) | self._turn_ends(name)

    def _turn_ends(self, name: str) -> frozenset[int]:
        """Special tokens with which the template ends an answer, such as <|im_end|>."""
        question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        before, whole = self.render([question]), self.render([question, answer], add_generation_prompt=False)
        known = set(self._tokenizer.all_special_ids) | set(self._tokenizer.added_tokens_decoder)
        # Templates that put something in front of the answer (<think>) are left to eos and pad.
        rest = whole.removeprefix(before) if whole.startswith(before) else ""
        return frozenset(token for token in self.encode(rest) if token in known)

    def render(self, messages: Messages, *, add_generation_prompt: bool = True) -> str:
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=False,
            )
        except TemplateError as error:
            raise UserError(f"the chat template refuses this conversation ({str(error).splitlines()[0]})") from None
        return str(text)

    def encode(self, rendered: str) -> list[int]:
        ids: list[int] = self._tokenizer(rendered, add_special_tokens=False, verbose=False)["input_ids"]
        return ids
