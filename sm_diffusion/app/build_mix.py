"""From the settings of a published fine-tuning mix to its conversations."""

from __future__ import annotations

from pathlib import Path

from sm_diffusion.config.schema_peft import ChatMixConfig, MessageFilesConfig
from sm_diffusion.data.chat.mixes import ChatMix, MessageFiles
from sm_diffusion.data.corpora.hub import HubRepository, LocalFolder
from sm_diffusion.types import UserError


def build_chat_mix(data: ChatMixConfig) -> ChatMix:
    """Parts in the order of their names, so that the order of settings does not matter."""
    cache_dir = Path(data.cache_dir).expanduser()
    return ChatMix(
        parts=[_part(name, data.parts[name], cache_dir) for name in sorted(data.parts)],
        validation_fraction=data.validation_fraction,
        max_samples=data.max_samples,
    )


def _part(name: str, part: MessageFilesConfig, cache_dir: Path) -> MessageFiles:
    if not (part.path or part.repo):
        raise UserError(f"data.parts.{name}: neither repo nor path: set data.parts.{name}.path=FOLDER")
    location = LocalFolder(part.path, cache_dir) if part.path else HubRepository(part.repo, part.revision, cache_dir)
    return MessageFiles(location, tuple(part.files), part.messages_field)
