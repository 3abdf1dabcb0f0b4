"""Texts for tokenizers: any at all, and a small corpus."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.helpers.data import MemorySource

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


SOURCE = MemorySource(["the quick brown fox, the lazy dog; the end. " * 20, "naïve <|endoftext|> [MASK] text"], ["val"])
