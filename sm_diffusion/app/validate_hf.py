"""Cross-checks of networks, adapters and chat data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sm_diffusion.data.chat.settings import ChatSettings
from sm_diffusion.denoisers.settings import label, takes_adapters, takes_packed_rows


def hf_problems(config: Any) -> Iterator[str]:
    """One line for every problem. config: a TrainConfig."""
    model = config.model
    yield from config.peft.problems()
    if config.peft.kind != "none" and not takes_adapters(model):
        yield f"peft.kind={config.peft.kind}: {label(model)} has no adapters; set peft=none, or model=dream_7b"
    if isinstance(config.data, ChatSettings) and config.data.packing != "none" and not takes_packed_rows(model):
        yield (
            f"data.packing={config.data.packing}: model={label(model)} takes no packed rows; "
            "set data.packing=none, or a backbone of transformers such as model=qwen2_tiny"
        )
