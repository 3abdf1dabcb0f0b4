"""What a user chooses as `data` for fine-tuning: conversations, their format, and how they become batches."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sm_diffusion.data.chat.rows import longest_row
from sm_diffusion.data.settings import DataSettings, base_problems
from sm_diffusion.registry import MISSING, register
from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from sm_diffusion.data.chat.datamodule import ChatDataModule
    from sm_diffusion.data.chat.format import ChatFormat
    from sm_diffusion.data.chat.mixes import MessageFiles
    from sm_diffusion.data.chat.sources import ChatSource


@dataclass
class ChatSettings(DataSettings):
    """Prompt-response pairs. `length` is the longest kept sample, tokens; padding comes on top."""

    validation_fraction: float = 0.05  # share of conversations
    min_response_tokens: int = 5  # shorter responses are dropped
    forbidden_tokens: list[str] = field(default_factory=lambda: ["<tool_call>", "</tool_call>"])  # samples are dropped
    pads_are_maskable: bool = True  # as published: padding is attended to, masked and trained
    packing: Literal["none", "block_diagonal"] = "none"  # a padded sample a row, as published | samples share rows
    packed_length: int | None = None  # tokens of a packed row; null: one sample of `length` with its padding

    def source(self) -> ChatSource:
        raise UserError(f"data={self.name}: {type(self).__name__} has no source; choose chat_files or python_chat")

    @property
    def row_width(self) -> int | None:
        from sm_diffusion.data.chat.rows import longest_row

        return longest_row(self.length)

    def packed_row_tokens(self) -> int | None:
        """Tokens of a packed row; None where every sample is a row."""
        return None if self.packing == "none" else self.packed_length or self.row_width

    def chat_format(self, source: ChatSource) -> ChatFormat:
        """A hub tokenizer with its chat template, or one of our own with plain "role: content" lines."""
        from sm_diffusion.data.chat.format import ChatTemplate, RoleLines
        from sm_diffusion.data.tokenizers.build import TokenizerSpec, build_tokenizer

        tokenizer = self.tokenizer
        if tokenizer.kind != "hub":
            spec = TokenizerSpec(kind=tokenizer.kind, vocab_size=tokenizer.vocab_size)
            return RoleLines(build_tokenizer(spec, source=source, cache_dir=Path(self.cache_dir).expanduser()))
        loaded = load_hub_tokenizer(tokenizer.path)
        return ChatTemplate(loaded, name=tokenizer.path, mask=tokenizer.mask, forbidden=self.forbidden_tokens)

    def datamodule(self, *, seed: int, world_size: int) -> ChatDataModule:
        from sm_diffusion.data.chat.datamodule import ChatDataModule, ChatRowSettings

        source = self.source()
        return ChatDataModule(
            source=source,
            make_tokenizer=functools.partial(self.chat_format, source),
            rows=ChatRowSettings(
                max_tokens=self.length,
                min_response_tokens=self.min_response_tokens,
                pads_are_maskable=self.pads_are_maskable,
                packed_row_tokens=self.packed_row_tokens(),
            ),
            loader=self.loader(seed=seed, world_size=world_size),
            cache_dir=self.cache_dir,
        )

    def problems(self) -> Iterator[str]:
        yield from chat_problems(self)


@register("data", "chat_files")
@dataclass
class ChatFilesSettings(ChatSettings):
    """.jsonl files of {"messages": [{"role": ..., "content": ...}, ...]}, the last message the assistant's."""

    paths: list[str] = MISSING
    validation_paths: list[str] = field(default_factory=list)  # empty: a share of the conversations of `paths`
    messages_field: str = "messages"

    def source(self) -> ChatSource:
        from sm_diffusion.data.chat.sources import ChatFiles

        return ChatFiles(
            paths=self.paths,
            messages_field=self.messages_field,
            validation_fraction=self.validation_fraction,
            validation_paths=self.validation_paths or None,
        )

    def problems(self) -> Iterator[str]:
        if not self.paths:
            yield "data.paths=[]: no files given; set data.paths=[file.jsonl,...]"
        yield from chat_problems(self)


@register("data", "python_chat")
@dataclass
class PythonChatSettings(ChatSettings):
    """The running interpreter's standard library: a docstring asks for a function, its source answers."""

    def source(self) -> ChatSource:
        from sm_diffusion.data.chat.python_chat import PythonChat

        return PythonChat(validation_fraction=self.validation_fraction)


@dataclass
class MessageFilesSettings:
    """One part of a mix: files of conversations on the hub, or in a folder in its layout."""

    repo: str = ""
    revision: str = "main"  # branch, tag or commit; resolved to a commit once
    path: str = ""  # a folder instead of the hub
    files: list[str] = field(default_factory=lambda: ["*.parquet", "*.jsonl"])  # patterns; * crosses folders
    messages_field: str = "messages"

    def files_of(self, name: str, cache_dir: Path) -> MessageFiles:
        """The files of the part of that name."""
        from sm_diffusion.data.chat.mixes import MessageFiles
        from sm_diffusion.data.corpora.hub import HubRepository, LocalFolder

        if not (self.path or self.repo):
            raise UserError(f"data.parts.{name}: neither repo nor path: set data.parts.{name}.path=FOLDER")
        location = (
            LocalFolder(self.path, cache_dir) if self.path else HubRepository(self.repo, self.revision, cache_dir)
        )
        return MessageFiles(location, tuple(self.files), self.messages_field)


@register("data", "chat_mix")
@dataclass
class ChatMixSettings(ChatSettings):
    """Conversations of several parts; point a part at local files with data.parts.NAME.path=FOLDER."""

    parts: dict[str, MessageFilesSettings] = MISSING
    max_samples: int | None = 300_000  # conversations read, evenly spread; null: all

    def source(self) -> ChatSource:
        """Parts in the order of their names, so that the order of settings does not matter."""
        from sm_diffusion.data.chat.mixes import ChatMix

        cache_dir = Path(self.cache_dir).expanduser()
        return ChatMix(
            parts=[self.parts[name].files_of(name, cache_dir) for name in sorted(self.parts)],
            validation_fraction=self.validation_fraction,
            max_samples=self.max_samples,
        )


def load_hub_tokenizer(name: str) -> Any:
    """Of a folder or a hub id, without remote code: Dream's is a Qwen2 tokenizer under another name."""
    from transformers import AutoTokenizer

    from sm_diffusion.denoisers.pretrained import dream
    from sm_diffusion.denoisers.pretrained.loading import fetch

    folder, _ = fetch(name)
    try:
        text = (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    except OSError:
        raise UserError(f"data.tokenizer.path={name}: {folder} holds no tokenizer_config.json") from None
    if "DreamTokenizer" in text:
        return dream.load_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"data.tokenizer.path={name}: no tokenizer could be loaded ({reason})") from None


def chat_problems(data: ChatSettings) -> Iterator[str]:
    """What is wrong with the settings every chat corpus shares."""
    yield from base_problems(data)
    if data.min_response_tokens < 1:
        yield f"data.min_response_tokens={data.min_response_tokens}: must be >= 1; published: 5"
    if not 0 < data.validation_fraction < 1:
        yield f"data.validation_fraction={data.validation_fraction}: must lie between 0 and 1, such as 0.05"
    if data.packing == "none":
        if data.packed_length is not None:
            yield f"data.packed_length={data.packed_length}: no rows are packed; set data.packing=block_diagonal"
    elif data.packed_length is not None:
        least = longest_row(data.length) if data.pads_are_maskable else data.length
        if data.packed_length < least:
            yield f"data.packed_length={data.packed_length}: one sample may take {least} tokens; set at least that"
    if data.tokenizer.kind == "hub" and not data.tokenizer.path:
        yield "data.tokenizer.path: missing; set it to the folder or hub id of the model"
