"""How a conversation becomes ids: one format a model, the same for training, chatting and evaluation."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

from sm_diffusion.data.chat.collate import ChatSample
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.data.tokenizers.subword import hub_files, hub_mask_id, hub_size
from sm_diffusion.files import digest
from sm_diffusion.types import UserError

Messages = Sequence[Mapping[str, str]]  # [{"role": "system" | "user" | "assistant", "content": text}, ...]
# Ling-Coder-SFT writes the roles this way.
ROLES = {"HUMAN": "user", "ASSISTANT": "assistant", "SYSTEM": "system"}
LINES, TEMPLATE = "lines", "template"


class ChatFormat(ABC):
    """Conversations to ids: a prompt to be answered, or a prompt with its response.

    kind:          `LINES` or `TEMPLATE`, as model folders record it.
    template:      what lays a conversation out; with the text it fixes the ids.
    vocab_size:    V, the mask included.     mask_id: of the mask token.
    pad_id:        fills rows up and, as in Dream, ends an answer.
    stop_ids:      an answer ends before the first of them.
    text_stop_ids: those among them that end a whole text, not just the assistant's turn.
    forbidden_ids: conversations that hold one of them are not trained on.
    """

    kind: str
    template: str
    vocab_size: int
    mask_id: int
    pad_id: int
    stop_ids: frozenset[int]
    text_stop_ids: frozenset[int]
    forbidden_ids: frozenset[int] = frozenset()

    @abstractmethod
    def render(self, messages: Messages, *, add_generation_prompt: bool = True) -> str:
        """A conversation as text, with add_generation_prompt up to where the assistant's answer starts."""

    @abstractmethod
    def encode(self, rendered: str) -> list[int]:
        """Ids of a rendered text; where the template has special tokens, their spelling stands for them."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of any ids, special tokens spelt out."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of everything that decides the ids: caches of encoded conversations are named by it."""

    @abstractmethod
    def files(self) -> dict[str, str]:
        """Name -> content of what it is built from again; see `TextTokenizer.files`."""

    @abstractmethod
    def _with_response(self, prompt: list[int], turns: Messages) -> list[int]:
        """Ids of all turns, the last of them the assistant's."""

    def prompt(self, messages: Messages, start: str = "") -> list[int]:
        """Ids up to where the assistant's answer starts, then those of `start`, its given beginning."""
        turns = [{**message, "role": ROLES.get(message["role"], message["role"])} for message in messages]
        return [*self.encode(self.render(turns)), *(self.encode(start) if start else [])]

    def sample(self, messages: Messages) -> ChatSample | None:
        """The last message as response, everything before it as prompt.

        None where there is no prompt or no response of the assistant, and where the ids of the whole do not begin
        with the prompt's (some templates rewrite earlier turns): the reference takes the prompt's length all the same
        and then trains on a part of the prompt, or skips a part of the response.
        """
        turns = [{"role": ROLES.get(m["role"], m["role"]), "content": m["content"]} for m in messages]
        if len(turns) < 2 or turns[-1]["role"] != "assistant":
            return None
        prompt = self.prompt(turns[:-1])
        ids = self._with_response(prompt, turns)
        return ChatSample(ids, len(prompt)) if ids[: len(prompt)] == prompt else None

    def template_sha256(self) -> str:
        """Of `template`, for records."""
        return digest(self.template)


@final
class RoleLines(ChatFormat):
    """Lines "role: content" by a text tokenizer; the response ends with the end of text."""

    kind = LINES
    template = "plain chat: role: content"

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self.vocab_size, self.mask_id, self.pad_id = tokenizer.vocab_size, tokenizer.mask_id, tokenizer.eos_id
        self.stop_ids = self.text_stop_ids = frozenset({tokenizer.eos_id})

    def render(self, messages: Messages, *, add_generation_prompt: bool = True) -> str:
        lines = "".join(f"{message['role']}: {message['content']}\n" for message in messages)
        # Without it the last message is an answer that has been begun: what follows goes on from there.
        return lines + "assistant: " if add_generation_prompt else lines.removesuffix("\n")

    def encode(self, rendered: str) -> list[int]:
        return self._tokenizer.encode_batch([rendered])[0]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)

    def fingerprint(self) -> str:
        return digest(f"plain chat 1 {self._tokenizer.fingerprint()}")

    def files(self) -> dict[str, str]:
        return self._tokenizer.files()

    def _with_response(self, prompt: list[int], turns: Messages) -> list[int]:
        return [*prompt, *self.encode(turns[-1]["content"]), self.pad_id]


@final
class ChatTemplate(ChatFormat):
    """The chat template of a tokenizer of transformers.

    hub:       the tokenizer.     name: what errors call it.
    mask:      "auto": its own mask token, else the first id that no token has; "token": its own.
    mask_id:   the network's, where that is known; None: by `mask`.
    forbidden: tokens whose conversations are not trained on; those it does not know do not count.

    Raises UserError without a chat template, a mask token, or a token that ends a text.
    """

    kind = TEMPLATE

    def __init__(
        self, hub: Any, *, name: str, mask: str = "token", mask_id: int | None = None, forbidden: Sequence[str] = ()
    ) -> None:
        if not hub.chat_template:
            raise UserError(f"{name}: the tokenizer has no chat template: use the tokenizer of an instruct model")
        mask_id = hub_mask_id(hub, mask) if mask_id is None else mask_id
        if mask_id is None:
            raise UserError(f"{name}: the tokenizer has no mask token: set data.tokenizer.mask=auto to add one")
        ends = [int(token) for token in (hub.pad_token_id, hub.eos_token_id) if token is not None]
        if not ends:
            raise UserError(f"{name}: the tokenizer has neither a padding token nor an end of text: set pad_token")
        self._hub = hub
        self.template = str(hub.chat_template)
        self.mask_id, self.pad_id = int(mask_id), ends[0]
        self.vocab_size = max(hub_size(hub), self.mask_id + 1)
        known = hub.get_vocab()
        self.forbidden_ids = frozenset(known[token] for token in forbidden if token in known)
        self.text_stop_ids = frozenset(ends)
        self.stop_ids = self.text_stop_ids | self._turn_ends()

    def _turn_ends(self) -> frozenset[int]:
        """Special tokens with which the template ends an answer, such as <|im_end|>."""
        question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
        try:
            before, whole = self.render([question]), self.render([question, answer], add_generation_prompt=False)
        except UserError:  # it wants other turns than these
            return frozenset()
        special = set(self._hub.all_special_ids) | set(self._hub.added_tokens_decoder)
        # Templates that put something in front of the answer (<think>) are left to eos and pad.
        rest = whole.removeprefix(before) if whole.startswith(before) else ""
        return frozenset(token for token in self.encode(rest) if token in special)

    def render(self, messages: Messages, *, add_generation_prompt: bool = True) -> str:
        from jinja2 import TemplateError

        try:
            text = self._hub.apply_chat_template(
                [dict(message) for message in messages],
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=False,
            )
        except TemplateError as error:
            raise UserError(f"the chat template refuses this conversation ({str(error).splitlines()[0]})") from None
        return str(text)

    def encode(self, rendered: str) -> list[int]:
        ids: list[int] = self._hub(rendered, add_special_tokens=False, verbose=False)["input_ids"]
        return list(ids)

    def decode(self, ids: Sequence[int]) -> str:
        own = [index for index in ids if index < len(self._hub)]
        text: str = self._hub.decode(own, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def fingerprint(self) -> str:
        vocabulary = digest(json.dumps(sorted(self._hub.get_vocab().items())))
        state = [vocabulary, self._hub.chat_template, self.mask_id, self.pad_id, sorted(self.forbidden_ids)]
        return digest(json.dumps(["template chat 1", *state]))

    def files(self) -> dict[str, str]:
        return hub_files(self._hub)

    def _with_response(self, prompt: list[int], turns: Messages) -> list[int]:
        return self.encode(self.render(turns, add_generation_prompt=False))


def stop_ids_of(tokenizer: TextTokenizer, chat: ChatFormat | None) -> frozenset[int]:
    """Ids that end an answer. The space that separates documents of characters is no end."""
    if chat is not None:
        return chat.stop_ids
    return frozenset({tokenizer.eos_id} if tokenizer.decode([tokenizer.eos_id]).strip() else ())
