"""The tokenizer of a trained model, from what travels with it: a checkpoint's record, or files in its folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sm_diffusion.app.build_data import build_source, tokenizer_spec
from sm_diffusion.app.build_hf import load_hub_tokenizer
from sm_diffusion.config import schema
from sm_diffusion.data.chat.face import ChatFace, PlainFace, TemplateFace
from sm_diffusion.data.stores.base import NoSource
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.data.tokenizers.build import build_tokenizer
from sm_diffusion.data.tokenizers.subword import BPETokenizer, HubTokenizer
from sm_diffusion.files import read_json, write_json, write_text
from sm_diffusion.types import UserError

CARD_FILE = "smd_model.json"


class Spoken(NamedTuple):
    """A tokenizer, and how to talk to the model; chat None: it was trained on plain text."""

    tokenizer: TextTokenizer
    chat: ChatFace | None


class ModelCard(NamedTuple):
    """What a model folder cannot say otherwise: its run's tokenizer and the longest text it was trained on."""

    kind: str
    mask: str
    chat: bool
    length: int


def open_tokenizer(data: schema.DataConfig, files: Mapping[str, str] | None) -> Spoken:
    """Of a run. files: as `TextTokenizer.files` gave them; None: a checkpoint without them, so name or corpus."""
    kind, chat = data.tokenizer.kind, isinstance(data, schema.ChatConfig)
    if not files:
        if kind == "hub":
            return open_hub(data.tokenizer.path, mask=data.tokenizer.mask, chat=chat)
        # Only a BPE needs the corpus, or rather its content, to find the trained file.
        source = build_source(data) if kind == "bpe" else NoSource()
        found = build_tokenizer(tokenizer_spec(data), source=source, cache_dir=Path(data.cache_dir).expanduser())
        return Spoken(found, PlainFace(found) if chat else None)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in files.items():
            (Path(folder) / Path(name).name).write_text(text, encoding="utf-8")
        return open_folder_tokenizer(Path(folder), kind=kind, mask=data.tokenizer.mask, chat=chat)


def open_folder_tokenizer(folder: Path, *, kind: str, mask: str, chat: bool, mask_id: int | None = None) -> Spoken:
    """From the files of a folder. mask_id: the network's."""
    match kind:
        case "hub":
            return open_hub(str(folder), mask=mask, chat=chat, mask_id=mask_id)
        case "bpe":
            try:
                found: TextTokenizer = BPETokenizer(path=folder / "tokenizer.json")
            except Exception as error:  # the package raises bare Exception for every unreadable file
                raise UserError(f"{folder / 'tokenizer.json'}: no readable tokenizer ({error})") from None
        case _:
            spec = tokenizer_spec(schema.DataConfig(tokenizer=schema.TokenizerConfig(kind=kind)))
            found = build_tokenizer(spec, source=NoSource(), cache_dir=folder)
    return Spoken(found, PlainFace(found) if chat else None)


def open_hub(name: str, *, mask: str, chat: bool | None, mask_id: int | None = None) -> Spoken:
    """A tokenizer of transformers. chat: None: where it has a chat template."""
    if chat is False:
        return Spoken(HubTokenizer(name=name, mask=mask, mask_id=mask_id), None)
    loaded = load_hub_tokenizer(name)
    if mask_id is None and loaded.mask_token_id is None and mask == "auto":
        mask_id = len(loaded)  # as `build_chat_tokenizer`
    talks = bool(loaded.chat_template) if chat is None else chat
    tokenizer = HubTokenizer(name=name, mask=mask, loaded=loaded, mask_id=mask_id)
    return Spoken(tokenizer, TemplateFace(loaded, name=name) if talks else None)


def write_model_card(folder: Path, data: schema.DataConfig, files: Mapping[str, str]) -> None:
    """Put a run's tokenizer and length beside its weights."""
    for name, text in files.items():
        write_text(folder / Path(name).name, text)
    tokenizer = {"kind": data.tokenizer.kind, "mask": data.tokenizer.mask}
    card: dict[str, Any] = {
        "tokenizer": tokenizer,
        "chat": isinstance(data, schema.ChatConfig),
        "length": data.length,
    }
    write_json(folder / CARD_FILE, card)


def read_model_card(folder: Path) -> ModelCard | None:
    """None where there is no such file. UserError for one that is malformed."""
    path = folder / CARD_FILE
    if not path.is_file():
        return None
    try:
        card = read_json(path)
        return ModelCard(
            str(card["tokenizer"]["kind"]), str(card["tokenizer"]["mask"]), bool(card["chat"]), int(card["length"])
        )
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{path}: not readable ({error}); write it again with smd convert") from None
