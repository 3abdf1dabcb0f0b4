"""Tokenizers from settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from sm_diffusion.data.tokenizers.build import TokenizerSpec, build_tokenizer
from sm_diffusion.types import UserError
from tests.helpers.data import one_line
from tests.helpers.texts import SOURCE


def test_build_errors(tmp_path: Path) -> None:
    for spec, words in (
        (TokenizerSpec(kind="words"), ["data.tokenizer.kind=words", "char, byte, bpe, hub"]),
        (TokenizerSpec(kind="bpe", vocab_size=100), ["data.tokenizer.vocab_size=100", "258"]),
        (TokenizerSpec(kind="bpe"), ["data.tokenizer.vocab_size=None"]),
        (TokenizerSpec(kind="hub"), ["data.tokenizer.path", "gpt2"]),
    ):
        with pytest.raises(UserError) as info:
            build_tokenizer(spec, source=SOURCE, cache_dir=tmp_path)
        assert all(word in one_line(info.value) for word in words)
