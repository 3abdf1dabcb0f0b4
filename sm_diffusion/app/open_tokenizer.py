"""The tokenizer of a trained model and its chat format, from what travels with it: a checkpoint's record, or files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from sm_diffusion.data.chat.format import ChatFormat, ChatTemplate, RoleLines
from sm_diffusion.data.chat.settings import ChatSettings, load_hub_tokenizer
from sm_diffusion.data.settings import DataSettings
from sm_diffusion.data.stores.base import NoSource
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.data.tokenizers.build import TokenizerSpec, build_tokenizer
from sm_diffusion.data.tokenizers.subword import BPETokenizer, HubTokenizer
from sm_diffusion.types import UserError


class OpenedTokenizer(NamedTuple):
    """A tokenizer, and how a conversation becomes its ids; chat None: the model was trained on plain text."""

    tokenizer: TextTokenizer
    chat: ChatFormat | None


def tokenizer_of_data(data: DataSettings, files: Mapping[str, str] | None) -> OpenedTokenizer:
    """The tokenizer of models trained on this data.

    Args:
        data: settings of the corpus.
        files: as `TextTokenizer.files` gave them (empty: this kind needs none); None: nothing is recorded, so the
            tokenizer is opened by its name, or found by the corpus it was trained on.
    """
    kind, chat = data.tokenizer.kind, isinstance(data, ChatSettings)
    if files or kind in ("char", "byte"):
        with tempfile.TemporaryDirectory() as folder:
            for name, text in (files or {}).items():
                (Path(folder) / Path(name).name).write_text(text, encoding="utf-8")
            return tokenizer_of_files(Path(folder), kind=kind, mask=data.tokenizer.mask, chat=chat)
    if kind == "hub":
        return hub_tokenizer(data.tokenizer.path, mask=data.tokenizer.mask, chat=chat)
    # A BPE was trained on the corpus, whose content says which file it is.
    source = data.source() if kind == "bpe" else NoSource()
    found = build_tokenizer(data.tokenizer_spec(), source=source, cache_dir=Path(data.cache_dir).expanduser())
    return OpenedTokenizer(found, RoleLines(found) if chat else None)


def tokenizer_of_files(
    folder: Path, *, kind: str, mask: str, chat: bool | None, mask_id: int | None = None
) -> OpenedTokenizer:
    """The tokenizer that the files of a folder hold.

    Args:
        folder: holds what `TextTokenizer.files` gave, or a published tokenizer.
        kind: char | byte | bpe | hub.
        mask: of kind hub: auto | token, see `HubTokenizer`.
        chat: whether the model was trained on conversations; None: where its tokenizer has a chat template.
        mask_id: the network's mask token, where it is known; of kind hub.
    """
    match kind:
        case "hub":
            return hub_tokenizer(str(folder), mask=mask, chat=chat, mask_id=mask_id)
        case "bpe":
            try:
                found: TextTokenizer = BPETokenizer(path=folder / "tokenizer.json")
            except Exception as error:  # the package raises bare Exception for every unreadable file
                raise UserError(f"{folder / 'tokenizer.json'}: no readable tokenizer ({error})") from None
        case _:
            spec = TokenizerSpec(kind=kind)
            found = build_tokenizer(spec, source=NoSource(), cache_dir=folder)
    return OpenedTokenizer(found, RoleLines(found) if chat else None)


def hub_tokenizer(name: str, *, mask: str, chat: bool | None, mask_id: int | None = None) -> OpenedTokenizer:
    """A tokenizer of transformers by its folder or hub id; the arguments are those of `tokenizer_of_files`."""
    if chat is False:
        return OpenedTokenizer(HubTokenizer(name=name, mask=mask, mask_id=mask_id), None)
    loaded = load_hub_tokenizer(name)
    tokenizer = HubTokenizer(name=name, mask=mask, loaded=loaded, mask_id=mask_id)
    talks = bool(loaded.chat_template) if chat is None else chat
    return OpenedTokenizer(tokenizer, ChatTemplate(loaded, name=name, mask_id=tokenizer.mask_id) if talks else None)
