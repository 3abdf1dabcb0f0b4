"""Settings of chat data."""

from __future__ import annotations

from dataclasses import dataclass, field

from sm_diffusion.config.schema_data import DataConfig
from sm_diffusion.registry import MISSING, register

PACKINGS = ("none", "block_diagonal")


@dataclass
class ChatConfig(DataConfig):
    """Prompt-response pairs. `length` is the longest kept sample, tokens; padding comes on top."""

    validation_fraction: float = 0.05  # share of conversations
    min_response_tokens: int = 5  # shorter responses are dropped
    forbidden_tokens: list[str] = field(default_factory=lambda: ["<tool_call>", "</tool_call>"])  # samples are dropped
    pads_are_maskable: bool = True  # as published: padding is attended to, masked and trained
    packing: str = "none"  # none (a padded sample a row, as published) | block_diagonal (samples share rows unseen)
    packed_length: int | None = None  # tokens of a packed row; null: one sample of `length` with its padding


@register("data", "chat_files")
@dataclass
class ChatFilesConfig(ChatConfig):
    """.jsonl files of {"messages": [{"role": ..., "content": ...}, ...]}, the last message the assistant's."""

    paths: list[str] = MISSING
    validation_paths: list[str] = field(default_factory=list)  # empty: a share of the conversations of `paths`
    messages_field: str = "messages"


@register("data", "python_chat")
@dataclass
class PythonChatConfig(ChatConfig):
    """The running interpreter's standard library: a docstring asks for a function, its source answers."""


@dataclass
class MessageFilesConfig:
    """One part of a mix: files of conversations on the hub, or in a folder in its layout."""

    repo: str = ""
    revision: str = "main"  # branch, tag or commit; resolved to a commit once
    path: str = ""  # a folder instead of the hub
    files: list[str] = field(default_factory=lambda: ["*.parquet", "*.jsonl"])  # patterns; * crosses folders
    messages_field: str = "messages"


@register("data", "chat_mix")
@dataclass
class ChatMixConfig(ChatConfig):
    """Conversations of several parts; point a part at local files with data.parts.NAME.path=FOLDER."""

    parts: dict[str, MessageFilesConfig] = MISSING
    max_samples: int | None = 300_000  # conversations read, evenly spread; null: all
