"""Chat samples to batches: filters, padding."""

from __future__ import annotations

import pytest
import torch

from sm_diffusion.data.chat.collate import (
    ChatLimits,
    ChatSample,
    collate,
    extra_padding,
    padded_length,
    refusal,
)


def test_filters() -> None:
    limits = ChatLimits(max_tokens=10, min_response_tokens=3, forbidden_ids=frozenset({99}))
    assert refusal(ChatSample(list(range(10)), 7), limits) is None
    assert refusal(None, limits) == "no_prompt_and_response"
    assert refusal(ChatSample(list(range(11)), 7), limits) == "too_long"
    assert refusal(ChatSample(list(range(10)), 8), limits) == "short_response"
    assert refusal(ChatSample([1, 2, 99, 4, 5], 1), limits) == "tool_call_tokens"
    assert ChatLimits() == ChatLimits(max_tokens=2048, min_response_tokens=5, forbidden_ids=frozenset({151657, 151658}))


def test_padding() -> None:
    assert {extra_padding(u / 1000) for u in range(1000)} == set(range(50))
    assert [padded_length(n, 0) for n in (1, 8, 9)] == [8, 8, 16]
    samples = [ChatSample([1, 2, 3], 1), ChatSample([4, 5, 6, 7, 8], 2)]
    batch = collate(samples, torch.tensor([4, 9]), pad_id=0, extra=4)
    assert batch.ids_BL.tolist() == [[1, 2, 3] + [0] * 13, [4, 5, 6, 7, 8] + [0] * 11]
    assert batch.rows_B.tolist() == [4, 9]
    assert batch.attention_mask_BL is None
    assert batch.maskable_BL is not None
    assert batch.maskable_BL.sum(1).tolist() == [15, 14]
    strict = collate(samples, torch.tensor([4, 9]), pad_id=0, extra=4, pads_are_maskable=False)
    assert strict.attention_mask_BL is not None
    assert strict.maskable_BL is not None
    assert strict.attention_mask_BL.sum(1).tolist() == [3, 5]
    assert strict.maskable_BL.sum(1).tolist() == [2, 3]
    with pytest.raises(ValueError, match="at least one sample"):
        collate([], torch.tensor([]), pad_id=0, extra=0)
