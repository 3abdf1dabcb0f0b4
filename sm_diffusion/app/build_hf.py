"""From settings of chat data to objects."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from sm_diffusion.app.build_mix import build_chat_mix
from sm_diffusion.config.schema_peft import PACKINGS, ChatConfig, ChatFilesConfig, ChatMixConfig, PythonChatConfig
from sm_diffusion.data.chat.datamodule import ChatDataModule, ChatRowSettings
from sm_diffusion.data.chat.format import ChatFormat, ChatTemplate, RoleLines
from sm_diffusion.data.chat.python_chat import PythonChat
from sm_diffusion.data.chat.rows import longest_row
from sm_diffusion.data.chat.sources import ChatFiles, ChatSource
from sm_diffusion.data.loader import LoaderSettings
from sm_diffusion.data.tokenizers.build import TokenizerSpec, build_tokenizer
from sm_diffusion.denoisers.pretrained import dream
from sm_diffusion.denoisers.pretrained.loading import fetch
from sm_diffusion.types import UserError


def build_chat_source(data: ChatConfig) -> ChatSource:
    match data:
        case ChatFilesConfig():
            return ChatFiles(
                paths=data.paths,
                messages_field=data.messages_field,
                validation_fraction=data.validation_fraction,
                validation_paths=data.validation_paths or None,
            )
        case PythonChatConfig():
            return PythonChat(validation_fraction=data.validation_fraction)
        case ChatMixConfig():
            return build_chat_mix(data)
        case _:
            raise UserError(f"data={data.name}: {type(data).__name__} has no source; choose chat_files or python_chat")


def build_chat_tokenizer(data: ChatConfig, source: ChatSource) -> ChatFormat:
    """A hub tokenizer with its chat template, or one of our own with plain "role: content" lines."""
    tokenizer = data.tokenizer
    if tokenizer.kind != "hub":
        spec = TokenizerSpec(kind=tokenizer.kind, vocab_size=tokenizer.vocab_size)
        return RoleLines(build_tokenizer(spec, source=source, cache_dir=Path(data.cache_dir).expanduser()))
    loaded = load_hub_tokenizer(tokenizer.path)
    return ChatTemplate(loaded, name=tokenizer.path, mask=tokenizer.mask, forbidden=data.forbidden_tokens)


def load_hub_tokenizer(name: str) -> Any:
    """Of a folder or a hub id, without remote code: Dream's is a Qwen2 tokenizer under another name."""
    from transformers import AutoTokenizer

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


def packed_row_tokens(data: ChatConfig) -> int | None:
    """Tokens of a packed row; None where every sample is a row."""
    match data.packing:
        case "none":
            return None
        case "block_diagonal":
            return data.packed_length or longest_row(data.length)
        case packing:
            raise UserError(f"data.packing={packing}: choose one of {', '.join(PACKINGS)}")


def build_chat_datamodule(data: ChatConfig, *, loader: LoaderSettings) -> ChatDataModule:
    source = build_chat_source(data)
    return ChatDataModule(
        source=source,
        make_tokenizer=functools.partial(build_chat_tokenizer, data, source),
        rows=ChatRowSettings(
            max_tokens=data.length,
            min_response_tokens=data.min_response_tokens,
            pads_are_maskable=data.pads_are_maskable,
            packed_row_tokens=packed_row_tokens(data),
        ),
        loader=loader,
        cache_dir=data.cache_dir,
    )
