"""Token streams wrapped to sequences of one length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

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


BATCH_DOCUMENTS = 1000  # documents the released loader wraps at a time


def wrap_with_ends(
    documents: Iterable[Sequence[int]],
    *,
    length: int,
    ends: tuple[int, int],
    eos_id: int | None,
    dtype: DTypeLike,
    batch_documents: int = BATCH_DOCUMENTS,
) -> Iterator[NDArray[np.integer]]:
    """Windows as the released loader makes them: BOS, L - 2 tokens of doc_0 EOS doc_1 EOS ..., EOS.

    Every `batch_documents` documents are wrapped by themselves, and what is left of each such batch is dropped. Where
    several processes prepare a source, it is first split as `contiguous_parts` says; give one part a call.
    Source: `_group_texts`, mdlm/dataloader.py:277-300 and s-sahoo/duo ch-1 dataloader.py:388 (`data.wrap=True`).

    Args:
        documents: ids of each document, without EOS; an empty one counts (its EOS stays).
        length: L, tokens of a window, its ends included; at least 3.
        ends: ids of BOS and EOS around a window; GPT-2 has one id for both.
        eos_id: after every document (`insert_train_eos`, `insert_valid_eos`); None: nothing between documents.
    Yields: arrays of shape (windows, L), in order, never an empty one.
    """
    inner = length - 2
    if inner < 1:
        raise ValueError(f"length={length}: a window with both ends needs at least 3 tokens")
    end = np.array([] if eos_id is None else [eos_id], dtype=dtype)
    for batch in _batches(documents, batch_documents):
        stream = np.concatenate([part for ids in batch for part in (np.asarray(ids, dtype=dtype), end)])
        rows = stream[: len(stream) // inner * inner].reshape(-1, inner)
        if len(rows):
            bos, eos = (np.full((len(rows), 1), token, dtype=dtype) for token in ends)
            yield np.concatenate([bos, rows, eos], axis=1)


def pad_with_ends(
    ids: Sequence[int], *, length: int, ends: tuple[int, int], pad_id: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """One document a window, as the released loader makes them with `data.wrap=False` (duo ch-1 dataloader.py:414).

    Returns: BOS, the first L - 2 tokens, EOS, then padding, shape (L,); and where it is not padding.
    """
    row = [ends[0], *ids[: length - 2], ends[1]]
    padded = np.full(length, pad_id, dtype=np.int64)
    padded[: len(row)] = row
    return padded, np.arange(length) < len(row)


def contiguous_parts(num_documents: int, num_parts: int) -> list[range]:
    """Numbers of the documents each of `num_parts` processes prepares: neighbours, the first parts one longer."""
    each, longer = divmod(num_documents, num_parts)
    starts = [part * each + min(part, longer) for part in range(num_parts + 1)]
    return [range(start, stop) for start, stop in pairwise(starts)]


def _batches(documents: Iterable[Sequence[int]], size: int) -> Iterator[list[Sequence[int]]]:
    batch: list[Sequence[int]] = []
    for ids in documents:
        batch.append(ids)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
