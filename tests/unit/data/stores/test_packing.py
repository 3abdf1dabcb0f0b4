from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sm_diffusion.data.stores.packing import wrap_documents


@given(
    documents=st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=12),
    length=st.integers(1, 7),
    chunk_tokens=st.integers(1, 30),
)
def test_wrap_equals_one_long_stream(documents: list[list[int]], length: int, chunk_tokens: int) -> None:
    stream: list[int] = []
    for document in documents:
        stream += [*document, 99]
    expected = [stream[start : start + length] for start in range(0, len(stream) - length + 1, length)]
    chunks = list(wrap_documents(documents, length=length, eos_id=99, dtype="uint16", chunk_tokens=chunk_tokens))
    assert all(len(chunk) and chunk.shape[1] == length and chunk.dtype == np.uint16 for chunk in chunks)
    assert [row for chunk in chunks for row in chunk.tolist()] == expected


def test_too_little_for_one_window() -> None:
    assert list(wrap_documents([[1, 2]], length=4, eos_id=0, dtype="int32")) == []
    assert [c.tolist() for c in wrap_documents([[1, 2]], length=3, eos_id=0, dtype="int32")] == [[[1, 2, 0]]]
