"""V of a tokenizer from its settings alone. Standard library only, but for a tokenizer of the hub that is not known."""

from __future__ import annotations

from typing import Protocol

from sm_diffusion.types import UserError

# Vocabularies of well-known hub tokenizers, the mask included.
HUB_VOCABULARIES = dict.fromkeys(("gpt2", "openai-community/gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"), 50258)
FIXED_VOCABULARIES = {"char": 28, "byte": 258}


class TokenizerChoice(Protocol):
    """kind, vocab_size, path, mask: as `TokenizerSpec` has them."""

    @property
    def kind(self) -> str: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def path(self) -> str: ...

    @property
    def mask(self) -> str: ...


def vocabulary(tokenizer: TokenizerChoice) -> int:
    """V, the mask included, without downloading anything where the tokenizer is a well-known one."""
    if tokenizer.kind in FIXED_VOCABULARIES:
        return FIXED_VOCABULARIES[tokenizer.kind]
    if tokenizer.kind == "bpe":
        return tokenizer.vocab_size
    if tokenizer.path in HUB_VOCABULARIES:
        return HUB_VOCABULARIES[tokenizer.path]
    from sm_diffusion.data.tokenizers.subword import HubTokenizer

    try:
        return HubTokenizer(name=tokenizer.path, mask=tokenizer.mask).vocab_size
    except (UserError, OSError, ValueError):
        raise UserError(
            f"data.tokenizer.path={tokenizer.path}: its vocabulary is not known here; "
            "say it with --vocab, the mask included"
        ) from None
