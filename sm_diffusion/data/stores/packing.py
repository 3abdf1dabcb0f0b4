"""Token streams wrapped to sequences of one length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import DTypeLike, NDArray

CHUNK_TOKENS = 2**20


def wrap_documents(
    documents: Iterable[Sequence[int]],
    *,
    length: int,
    eos_id: int | None,
    dtype: DTypeLike,
    chunk_tokens: int = CHUNK_TOKENS,
) -> Iterator[NDArray[np.integer]]:
    """Cuts doc_0 EOS doc_1 EOS ... doc_n EOS into consecutive windows; the last, partial window is dropped.

    documents: ids of each document, without EOS.     eos_id: None: nothing between documents.
    length: L, tokens of a window; windows cross document borders.
    chunk_tokens: about how many tokens are held at once.

    Yields arrays of shape (windows, L), in order, never an empty one.
    """
    parts: list[NDArray[np.integer]] = []
    held = 0
    end = np.array([] if eos_id is None else [eos_id], dtype=dtype)
    for ids in documents:
        parts += [np.asarray(ids, dtype=dtype), end]
        held += len(ids) + len(end)
        if held >= max(chunk_tokens, length):
            stream = np.concatenate(parts)
            full = held // length * length
            yield stream[:full].reshape(-1, length)
            parts, held = [stream[full:].copy()], held - full
    if held >= length:
        yield np.concatenate(parts)[: held // length * length].reshape(-1, length)
