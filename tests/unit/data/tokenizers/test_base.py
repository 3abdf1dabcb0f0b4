from __future__ import annotations

from hypothesis import given

from sm_diffusion.data.tokenizers.base import ByteTokenizer, CharTokenizer
from tests.helpers.texts import TEXT


@given(TEXT)
def test_char_text8_rules(text: str) -> None:
    tokenizer = CharTokenizer()
    ids = tokenizer.encode_batch([text])[0]
    normalized = tokenizer.normalize(text)
    assert tokenizer.decode(ids) == normalized == tokenizer.normalize(normalized)
    assert set(normalized) <= set("abcdefghijklmnopqrstuvwxyz ")
    assert "  " not in normalized
    assert max(ids, default=0) <= 26


def test_char_ids() -> None:
    tokenizer = CharTokenizer()
    assert (tokenizer.vocab_size, tokenizer.mask_id, tokenizer.eos_id) == (28, 27, 0)
    assert tokenizer.normalize("  Hello,\n\n WORLD 42-x! ") == "hello world x"
    assert tokenizer.encode_batch(["A b", ""]) == [[1, 0, 2], []]
    assert tokenizer.decode([1, 27, 2]) == "a_b"


@given(TEXT)
def test_bytes_round_trip(text: str) -> None:
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode_batch([text])[0]
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_byte_ids_and_any_decode() -> None:
    tokenizer = ByteTokenizer()
    assert (tokenizer.vocab_size, tokenizer.mask_id, tokenizer.eos_id) == (258, 257, 256)
    assert tokenizer.decode([104, 105, 256, 257, 33]) == "hi<|endoftext|>[MASK]!"
    assert tokenizer.decode([0xC3]) == "\ufffd"
