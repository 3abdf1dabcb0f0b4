"""Text to ids and back: the `TextTokenizer` interface, characters and bytes."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence

from sm_diffusion.files import digest

EOS_TEXT = "<|endoftext|>"
MASK_TEXT = "[MASK]"
_GUARD = "a"  # a character that every tokenizer that drops spaces at the ends of a text keeps


class TextTokenizer(ABC):
    """Ids in [0, vocab_size). The mask is an id that no text is ever encoded to."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """V, the mask included."""

    @property
    @abstractmethod
    def mask_id(self) -> int:
        """Id of the mask token."""

    @property
    @abstractmethod
    def eos_id(self) -> int:
        """Id that separates documents."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without any special token; text that spells a special token is encoded as text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Readable text of any ids in [0, V); `decode(encode(text)) == normalize(text)`."""

    @abstractmethod
    def normalize(self, text: str) -> str:
        """The text that the ids really stand for; its UTF-8 bytes are the ones that bits per byte counts."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex digest of everything that decides the ids."""

    def files(self) -> dict[str, str]:
        """Name -> content of what it is built from again: a checkpoint carries them. Empty: it needs nothing."""
        return {}


def encode_piece(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Ids of a part of a text: spaces at its ends count, even for a tokenizer that drops those of a whole text."""
    if tokenizer.normalize(text) == text:
        return tokenizer.encode_batch([text])[0]
    return tokenizer.encode_batch([_GUARD + text + _GUARD])[0][1:-1]


class CharTokenizer(TextTokenizer):
    """Characters as in text8: a-z and the space, V = 28 with the mask.

    Text is lower-cased and every run of other characters becomes one space. The space also separates documents,
    because there is no symbol to spare. The mask decodes to "_".
    """

    _SYMBOLS = " abcdefghijklmnopqrstuvwxyz"
    _TO_IDS = bytes.maketrans(_SYMBOLS.encode(), bytes(range(27)))
    _OTHERS = re.compile(r"[^a-z]+")

    vocab_size = 28
    mask_id = 27
    eos_id = 0

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(self.normalize(text).encode("ascii").translate(self._TO_IDS)) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        symbols = self._SYMBOLS + "_"
        return "".join(symbols[index] for index in ids)

    def normalize(self, text: str) -> str:
        return self._OTHERS.sub(" ", text.lower()).strip(" ")

    def fingerprint(self) -> str:
        return digest(b"char 1")


class ByteTokenizer(TextTokenizer):
    """UTF-8 bytes, then the end of a document (256) and the mask (257): V = 258."""

    vocab_size = 258
    mask_id = 257
    eos_id = 256

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        special = {self.eos_id: EOS_TEXT.encode(), self.mask_id: MASK_TEXT.encode()}
        return b"".join(special.get(index) or bytes([index]) for index in ids).decode(errors="replace")

    def normalize(self, text: str) -> str:
        return text

    def fingerprint(self) -> str:
        return digest(b"byte 1")
