"""What packing saves: positions that the network computes for one epoch of conversations, padded and packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sm_diffusion.data.chat.cache import prepare_chat
from sm_diffusion.data.chat.format import RoleLines
from sm_diffusion.data.chat.python_chat import PythonChat
from sm_diffusion.data.chat.rows import PackedRows, PaddedRows, RowMaker, longest_row
from sm_diffusion.data.loader import LoaderSettings, table_loader
from sm_diffusion.data.tokenizers.base import ByteTokenizer

MAX_TOKENS = 2048
MICRO_BATCHES = (8, 32)


def measure_packing(cache_dir: Path) -> dict[str, float]:
    """Real tokens / positions computed, by rows and micro-batch; the published padding is part of both.

    data=python_chat, bytes, at most 2,048 tokens a sample, rows of one such sample with its padding.
    """
    tokenizer = RoleLines(ByteTokenizer())
    cache = prepare_chat(
        source=PythonChat(validation_fraction=0.05),
        tokenizer=tokenizer,
        max_tokens=MAX_TOKENS,
        min_response_tokens=5,
        cache_dir=cache_dir,
    )
    common: dict[str, Any] = {"pad_id": tokenizer.pad_id, "pads_are_maskable": True, "seed": 1}
    makers: dict[str, RowMaker] = {
        "padded": PaddedRows(**common),
        "packed": PackedRows(**common, row_tokens=longest_row(MAX_TOKENS)),
    }
    found = {}
    for size in MICRO_BATCHES:
        settings = LoaderSettings(
            global_batch_sequences=MICRO_BATCHES[-1],
            micro_batch_sequences=size,
            eval_batch_sequences=1,
            num_workers=0,
            seed=1,
        )
        for name, maker in makers.items():
            real = computed = 0
            for batch in table_loader(cache.train, settings, rank=0, world_size=1):
                real += int(batch.ids_BL[:, 0].sum())
                made = maker(batch, 0)
                computed += (made.ids_BL if made.places_PQ is None else made.places_PQ).numel()
            found[f"{name}_{size}"] = real / computed
    return found
