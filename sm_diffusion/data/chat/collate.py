"""Chat samples to batches for fine-tuning: the response is trained, the prompt before it is given.

Pure functions; random numbers are arguments. Published recipe: Hersche et al., arXiv 2510.17206, coding experiments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sm_diffusion.types import Batch

EXTRA_PADDING = 50  # padding goes up to the longest row plus 0 .. 49
PADDING_MULTIPLE = 8


class ChatSample(NamedTuple):
    """ids: prompt and response. prompt_length: how many of them the model is given."""

    ids: list[int]
    prompt_length: int


@dataclass(frozen=True, kw_only=True)
class ChatLimits:
    """Which samples are kept. forbidden_ids: tokens of tool calls, whose samples are dropped (Qwen2.5's by default)."""

    max_tokens: int = 2048
    min_response_tokens: int = 5
    forbidden_ids: frozenset[int] = frozenset({151657, 151658})


def refusal(sample: ChatSample | None, limits: ChatLimits) -> str | None:
    """Why a sample is dropped, or None: no_prompt_and_response, too_long, short_response, tool_call_tokens."""
    if sample is None:
        return "no_prompt_and_response"
    if len(sample.ids) > limits.max_tokens:
        return "too_long"
    if len(sample.ids) - sample.prompt_length < limits.min_response_tokens:
        return "short_response"
    return None if limits.forbidden_ids.isdisjoint(sample.ids) else "tool_call_tokens"


def extra_padding(uniform: float) -> int:
    """0 .. 49 from a uniform number in [0, 1)."""
    return math.floor(EXTRA_PADDING * uniform)


def padded_length(longest: int, extra: int, multiple: int = PADDING_MULTIPLE) -> int:
    """longest + extra, rounded up to a multiple of 8."""
    return -(-(longest + extra) // multiple) * multiple


def collate(
    samples: Sequence[ChatSample],
    rows_B: Tensor,
    *,
    pad_id: int,
    extra: int,
    pads_are_maskable: bool = True,
) -> Batch:
    """Right-padded batch. The prompt is not maskable.

    extra:             padding beyond the longest row, 0 .. 49 (`extra_padding`).
    pads_are_maskable: as published, padding is attended to, masked and trained like text, which teaches the model to
                       end its answers. False: nothing attends to it and no loss counts it.
    """
    if not samples:
        raise ValueError("collate needs at least one sample")
    length = padded_length(max(len(sample.ids) for sample in samples), extra)
    ids_BL = torch.full((len(samples), length), pad_id, dtype=torch.int64)
    for row, sample in enumerate(samples):
        ids_BL[row, : len(sample.ids)] = torch.tensor(sample.ids, dtype=torch.int64)
    columns_L = torch.arange(length)
    maskable_BL = columns_L >= torch.tensor([[sample.prompt_length] for sample in samples])
    if pads_are_maskable:
        return Batch(ids_BL, rows_B, None, maskable_BL)
    real_BL = columns_L < torch.tensor([[len(sample.ids)] for sample in samples])
    return Batch(ids_BL, rows_B, real_BL, maskable_BL & real_BL)
