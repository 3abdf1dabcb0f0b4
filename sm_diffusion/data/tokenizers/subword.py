"""Subword tokenizers: a BPE trained on the corpus, and any Hugging Face tokenizer."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sm_diffusion.data.corpora.base import Document
from sm_diffusion.data.tokenizers.base import EOS_TEXT, MASK_TEXT, TextTokenizer
from sm_diffusion.files import digest
from sm_diffusion.types import UserError

MASK_CHOICES = ("auto", "token")
BPE_TRAINING_BYTES = 256 * 2**20  # of the training documents, in order: plenty for a vocabulary


class BPETokenizer(TextTokenizer):
    """Byte-level BPE of the `tokenizers` package; the mask is one slot past its vocabulary.

    path: tokenizer.json as `train_bpe` writes it.
    """

    def __init__(self, *, path: Path) -> None:
        self._bpe = tokenizers.Tokenizer.from_file(str(path))
        self._bpe.encode_special_tokens = True  # text that spells a special token is text
        eos_id = self._bpe.token_to_id(EOS_TEXT)
        assert eos_id is not None, f"{path} was not written by train_bpe"
        self._eos_id: int = eos_id
        self._size: int = self._bpe.get_vocab_size()
        self._text = path.read_text(encoding="utf-8")
        self._fingerprint = digest(b"bpe 1" + path.read_bytes())

    @property
    def vocab_size(self) -> int:
        return self._size + 1

    @property
    def mask_id(self) -> int:
        return self._size

    @property
    def eos_id(self) -> int:
        return self._eos_id

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._bpe.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        return _decode_around(ids, self.mask_id, lambda part: self._bpe.decode(part, skip_special_tokens=False))

    def normalize(self, text: str) -> str:
        return text

    def fingerprint(self) -> str:
        return self._fingerprint

    def files(self) -> dict[str, str]:
        return {"tokenizer.json": self._text}


class HubTokenizer(TextTokenizer):
    """A tokenizer from a folder or by its name on the Hugging Face hub, such as gpt2. Runs no code from the hub.

    name: folder, or name on the hub.
    mask: 'auto': the tokenizer's own mask token, else one slot past its vocabulary (gpt2: id 50,257, V = 50,258).
          'token': its own mask token, as a network pretrained with one needs.
    loaded:  a tokenizer of transformers that has been opened already.     mask_id: the network's, where it has one.

    Errors: UserError if it cannot be loaded, is empty, has no end-of-text token, or has no mask token for 'token'.
    """

    def __init__(self, *, name: str, mask: str, loaded: Any = None, mask_id: int | None = None) -> None:
        if mask not in MASK_CHOICES:
            raise UserError(f"data.tokenizer.mask={mask}: choose one of {', '.join(MASK_CHOICES)}")
        self._hub = _load_hub(name) if loaded is None else loaded
        size = hub_size(self._hub)
        if size <= 256:
            raise UserError(
                f"data.tokenizer.path={name}: the tokenizer is empty ({size} tokens): its vocabulary files "
                f"(tokenizer.json, or vocab.json and merges.txt) are missing: add them to the folder"
            )
        eos_id = self._hub.eos_token_id if self._hub.eos_token_id is not None else self._hub.sep_token_id
        if eos_id is None:
            raise UserError(f"data.tokenizer.path={name}: it has no eos_token: set one in its tokenizer_config.json")
        own_mask = self._hub.mask_token_id
        mask_id = hub_mask_id(self._hub, mask) if mask_id is None else mask_id
        if mask_id is None:
            raise UserError(
                f"data.tokenizer.mask=token: {name} has no mask token: set data.tokenizer.mask=auto to add a slot, "
                f"or set mask_token in its tokenizer_config.json"
            )
        self._eos_id = int(eos_id)
        self._own_mask = own_mask is not None and mask_id == own_mask
        self._mask_id = int(mask_id)
        self._size = max(size, self._mask_id + 1)
        self._fingerprint = self._digest()

    @property
    def vocab_size(self) -> int:
        return self._size

    @property
    def mask_id(self) -> int:
        return self._mask_id

    @property
    def eos_id(self) -> int:
        return self._eos_id

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self._hub(
            list(texts),
            add_special_tokens=False,
            split_special_tokens=True,
            truncation=False,
            padding=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )["input_ids"]
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        def decode_part(part: list[int]) -> str:
            own = [index for index in part if index < len(self._hub)]  # networks have rows that no token has
            text = self._hub.decode(own, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            assert isinstance(text, str)
            return text

        return _decode_around(ids, -1 if self._own_mask else self._mask_id, decode_part)

    def normalize(self, text: str) -> str:
        return text

    def fingerprint(self) -> str:
        return self._fingerprint

    def files(self) -> dict[str, str]:
        return hub_files(self._hub)

    def _digest(self) -> str:
        from transformers import PreTrainedTokenizerFast

        if isinstance(self._hub, PreTrainedTokenizerFast):
            state = self._hub.backend_tokenizer.to_str()
        else:
            state = json.dumps([type(self._hub).__name__, sorted(self._hub.get_vocab().items())])
        settings = json.dumps([self._mask_id, self._eos_id, self._size])
        return digest(f"hub 1 {settings} {state}")


def _load_hub(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        where = "this folder" if Path(name).is_dir() else "a folder or the Hugging Face hub"
        raise UserError(
            f"data.tokenizer.path={name}: no tokenizer could be loaded from {where} ({reason}): "
            f"set it to a folder that holds tokenizer.json"
        ) from None


def hub_size(tokenizer: Any) -> int:
    """One more than the largest id of a tokenizer of transformers."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def hub_mask_id(tokenizer: Any, mask: str) -> int | None:
    """Its own mask token; without one, for 'auto' the first id that no token has, for 'token' None."""
    if tokenizer.mask_token_id is not None:
        return int(tokenizer.mask_token_id)
    return hub_size(tokenizer) if mask == "auto" else None


def hub_files(tokenizer: Any) -> dict[str, str]:
    """Name -> content of the files that a tokenizer of transformers is opened from again."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(Path(folder).iterdir())}


def _decode_around(ids: Sequence[int], mask_id: int, decode: Callable[[list[int]], str]) -> str:
    """Decodes the stretches between masks, which `decode` does not know."""
    parts = []
    for is_mask, group in itertools.groupby(map(int, ids), key=lambda index: index == mask_id):
        stretch = list(group)
        parts.append(MASK_TEXT * len(stretch) if is_mask else decode(stretch))
    return "".join(parts)


def train_bpe(documents: Iterable[Document], *, vocab_size: int, path: Path) -> None:
    """Trains a byte-level BPE of at most vocab_size - 1 tokens, EOS_TEXT among them, and saves it as JSON.

    The same documents give the same file. A small corpus may have too few pairs to fill the vocabulary.
    """
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        special_tokens=[EOS_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_first_texts(documents, BPE_TRAINING_BYTES), trainer)
    bpe.save(str(path))


def _first_texts(documents: Iterable[Document], num_bytes: int) -> Iterator[str]:
    for document in documents:
        yield document.text
        num_bytes -= len(document.text.encode())
        if num_bytes <= 0:
            return
