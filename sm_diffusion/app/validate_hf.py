"""Cross-checks of networks, adapters and chat data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sm_diffusion.config.schema_peft import PACKINGS, ChatConfig, ChatFilesConfig
from sm_diffusion.data.chat.rows import longest_row
from sm_diffusion.denoisers.settings import label, takes_adapters, takes_packed_rows


def hf_problems(config: Any) -> Iterator[str]:
    """One line for every problem. config: a TrainConfig."""
    model = config.model
    yield from config.peft.problems()
    if config.peft.kind != "none" and not takes_adapters(model):
        yield f"peft.kind={config.peft.kind}: {label(model)} has no adapters; set peft=none, or model=dream_7b"
    if isinstance(config.data, ChatConfig):
        yield from _chat(config.data)
        if config.data.packing != "none" and not takes_packed_rows(model):
            yield (
                f"data.packing={config.data.packing}: model={label(model)} takes no packed rows; "
                "set data.packing=none, or a backbone of transformers such as model=qwen2_tiny"
            )


def _chat(data: ChatConfig) -> Iterator[str]:
    if isinstance(data, ChatFilesConfig) and not data.paths:
        yield "data.paths=[]: no files given; set data.paths=[file.jsonl,...]"
    if data.min_response_tokens < 1:
        yield f"data.min_response_tokens={data.min_response_tokens}: must be >= 1; published: 5"
    if not 0 < data.validation_fraction < 1:
        yield f"data.validation_fraction={data.validation_fraction}: must lie between 0 and 1, such as 0.05"
    yield from _packing(data)
    if data.tokenizer.kind == "hub" and not data.tokenizer.path:
        yield "data.tokenizer.path: missing; set it to the folder or hub id of the model"


def _packing(data: ChatConfig) -> Iterator[str]:
    if data.packing not in PACKINGS:
        yield f"data.packing={data.packing}: unknown; choose one of {', '.join(PACKINGS)}"
    elif data.packing == "none":
        if data.packed_length is not None:
            yield f"data.packed_length={data.packed_length}: no rows are packed; set data.packing=block_diagonal"
    elif data.packed_length is not None:
        least = longest_row(data.length) if data.pads_are_maskable else data.length
        if data.packed_length < least:
            yield f"data.packed_length={data.packed_length}: one sample may take {least} tokens; set at least that"
