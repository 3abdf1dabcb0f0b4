"""Byte pairs learned from a corpus, and tokenizers of the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given
from tokenizers import models, pre_tokenizers

from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.data.tokenizers.build import TokenizerSpec, build_tokenizer
from sm_diffusion.data.tokenizers.subword import HubTokenizer
from sm_diffusion.types import UserError
from tests.helpers.data import MemorySource, one_line
from tests.helpers.texts import SOURCE, TEXT


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    spec = TokenizerSpec(kind="bpe", vocab_size=300)
    return build_tokenizer(spec, source=SOURCE, cache_dir=tmp_path_factory.mktemp("cache"))


def hub_folder(folder: Path, *, size: int = 300, **special: str) -> str:
    """A Hugging Face tokenizer folder: bytes and made-up words up to `size` tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*alphabet, *(f"word{index}" for index in range(size - len(alphabet) - len(special)))]
    model = tokenizers.Tokenizer(models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(list(special.values()))
    folder.mkdir(exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


@given(TEXT)
def test_bpe_round_trip(bpe: TextTokenizer, text: str) -> None:
    ids = bpe.encode_batch([text])[0]
    assert bpe.decode(ids) == text
    assert bpe.mask_id not in ids
    assert bpe.eos_id not in ids


def test_bpe_ids(bpe: TextTokenizer) -> None:
    assert bpe.vocab_size == 300
    assert bpe.mask_id == 299
    assert len(bpe.encode_batch(["the lazy dog"])[0]) < len("the lazy dog")
    # text that spells a special token stays text
    assert bpe.eos_id not in bpe.encode_batch(["a <|endoftext|> b"])[0]
    assert bpe.decode([bpe.mask_id, bpe.eos_id, bpe.mask_id]) == "[MASK]<|endoftext|>[MASK]"


def test_bpe_is_cached_by_content_and_deterministic(tmp_path: Path) -> None:
    spec = TokenizerSpec(kind="bpe", vocab_size=300)
    first = build_tokenizer(spec, source=SOURCE, cache_dir=tmp_path / "a")
    (file,) = (tmp_path / "a").glob("bpe-*/tokenizer.json")
    written = file.stat().st_mtime_ns
    again = build_tokenizer(spec, source=SOURCE, cache_dir=tmp_path / "a")
    assert file.stat().st_mtime_ns == written
    elsewhere = build_tokenizer(spec, source=SOURCE, cache_dir=tmp_path / "b")
    assert first.fingerprint() == again.fingerprint() == elsewhere.fingerprint()
    other = build_tokenizer(spec, source=MemorySource(["zzz zzz zzzz " * 9], []), cache_dir=tmp_path / "a")
    assert other.fingerprint() != first.fingerprint()


def test_bpe_damaged_file_is_rebuilt(tmp_path: Path) -> None:
    spec = TokenizerSpec(kind="bpe", vocab_size=300)
    first = build_tokenizer(spec, source=SOURCE, cache_dir=tmp_path)
    (file,) = tmp_path.glob("bpe-*/tokenizer.json")
    file.write_text(file.read_text()[:100])
    with pytest.warns(UserWarning, match="damaged"):
        again = build_tokenizer(spec, source=SOURCE, cache_dir=tmp_path)
    assert again.fingerprint() == first.fingerprint()


def test_hub_adds_a_slot_or_uses_its_own_mask(tmp_path: Path) -> None:
    plain = HubTokenizer(name=hub_folder(tmp_path / "plain", eos_token="</s>"), mask="auto")
    assert (plain.vocab_size, plain.mask_id, plain.eos_id) == (301, 300, 299)
    folder = hub_folder(tmp_path / "own", mask_token="<m>", eos_token="</s>")
    for mask in ("auto", "token"):
        own = HubTokenizer(name=folder, mask=mask)
        assert (own.vocab_size, own.mask_id, own.eos_id) == (300, 298, 299)
    assert own.fingerprint() != plain.fingerprint()
    for tokenizer in (plain, own):
        ids = tokenizer.encode_batch(["a <m></s> é", ""])
        assert tokenizer.mask_id not in ids[0]
        assert tokenizer.eos_id not in ids[0]
        assert ids[1] == []
        assert tokenizer.decode(ids[0]) == "a <m></s> é"
    assert plain.decode([plain.mask_id, *ids[0], plain.mask_id]) == "[MASK]a <m></s> é[MASK]"
    assert own.decode([own.mask_id]) == "<m>"


def test_hub_errors(tmp_path: Path) -> None:
    no_mask = hub_folder(tmp_path / "plain", eos_token="</s>")
    with pytest.raises(UserError) as info:
        HubTokenizer(name=no_mask, mask="token")
    assert "data.tokenizer.mask=token" in one_line(info.value)
    assert "mask=auto" in str(info.value)

    with pytest.raises(UserError) as info:
        HubTokenizer(name=hub_folder(tmp_path / "no_eos"), mask="auto")
    assert "eos_token" in one_line(info.value)

    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(UserError) as info:
        HubTokenizer(name=str(empty), mask="auto")
    assert str(empty) in one_line(info.value)
    assert "tokenizer.json" in str(info.value)

    with pytest.raises(UserError) as info:
        HubTokenizer(name=str(tmp_path / "missing"), mask="auto")
    assert "missing" in one_line(info.value)

    with pytest.raises(UserError, match="choose one of auto, token"):
        HubTokenizer(name=no_mask, mask="mine")
