"""Which tokenizer a run uses, and how it is made."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from sm_diffusion.data.corpora.base import TokenSource
from sm_diffusion.data.stores.cache import build_once
from sm_diffusion.data.tokenizers.base import ByteTokenizer, CharTokenizer, TextTokenizer
from sm_diffusion.data.tokenizers.subword import BPETokenizer, HubTokenizer, train_bpe
from sm_diffusion.files import digest
from sm_diffusion.types import UserError

KINDS = ("char", "byte", "bpe", "hub")
BPE_VERSION = 1
BPE_MIN_VOCAB_SIZE = 258


@dataclass(frozen=True)
class TokenizerSpec:
    """Which tokenizer to build.

    kind:       'char' | 'byte' | 'bpe' | 'hub'.
    vocab_size: 'bpe' only: wanted V, the mask included, at least 258.
    path:       'hub' only: folder or name on the hub.
    mask:       'hub' only: 'auto' | 'token', see `HubTokenizer`.
    """

    kind: str
    vocab_size: int | None = None
    path: str | None = None
    mask: str = "auto"


def build_tokenizer(spec: TokenizerSpec, *, source: TokenSource, cache_dir: Path) -> TextTokenizer:
    """The tokenizer that `spec` describes; a BPE is trained on the training documents once and kept in `cache_dir`."""
    if spec.kind == "char":
        return CharTokenizer()
    if spec.kind == "byte":
        return ByteTokenizer()
    if spec.kind == "bpe":
        return _cached_bpe(spec.vocab_size, source=source, cache_dir=cache_dir)
    if spec.kind == "hub":
        if not spec.path:
            raise UserError("data.tokenizer.path is missing: set it to a folder or a hub name such as gpt2")
        return HubTokenizer(name=spec.path, mask=spec.mask)
    raise UserError(f"data.tokenizer.kind={spec.kind}: choose one of {', '.join(KINDS)}")


def _cached_bpe(vocab_size: int | None, *, source: TokenSource, cache_dir: Path) -> BPETokenizer:
    if vocab_size is None or vocab_size < BPE_MIN_VOCAB_SIZE:
        raise UserError(
            f"data.tokenizer.vocab_size={vocab_size}: a byte-level BPE needs 256 bytes, an end and a mask: "
            f"set it to at least {BPE_MIN_VOCAB_SIZE}"
        )
    key = json.dumps(["bpe", BPE_VERSION, vocab_size, source.fingerprint()])
    folder = cache_dir / f"bpe-{digest(key)[:24]}"

    def build(new: Path) -> None:
        train_bpe(source.train(), vocab_size=vocab_size, path=new / "tokenizer.json")

    def check(old: Path) -> str | None:
        try:
            BPETokenizer(path=old / "tokenizer.json")
        except Exception as error:  # the package raises bare Exception for every unreadable file
            return f"tokenizer.json: {error}"
        return None

    build_once(folder, build=build, check=check)
    return BPETokenizer(path=folder / "tokenizer.json")
