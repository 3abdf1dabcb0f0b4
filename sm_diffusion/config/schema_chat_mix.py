"""Settings of published fine-tuning mixes."""

from __future__ import annotations

from dataclasses import dataclass, field

from sm_diffusion.config.schema_peft import ChatConfig
from sm_diffusion.registry import MISSING, register


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
