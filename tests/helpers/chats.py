"""Tiny conversations and a tiny Dream-shaped base on disk, for whole fine-tunings."""

from __future__ import annotations

import json
import random
from pathlib import Path

from sm_diffusion.denoisers.pretrained.export import export_folder
from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.sampling import (
    Blockwise,
    ConfidenceOrder,
    PrefixCache,
    RowNoise,
    Sampler,
    Threshold,
    TokenSampling,
    build_measure,
    from_prompts,
)
from tests.helpers.qwen import tiny_qwen

BYTE_VOCAB, BYTE_MASK = 258, 257


def write_chats(path: Path, *, num: int = 60, seed: int = 0) -> Path:
    """A .jsonl of requests and answers whose lengths differ."""
    rng = random.Random(seed)
    with path.open("w") as file:
        for _ in range(num):
            name, size = rng.choice(["add", "sub", "mul", "max", "min", "len"]), rng.randint(1, 8)
            answer = f"def {name}(x): return " + "+".join("x" * size)
            chat = [{"role": "user", "content": f"{name} {size}"}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": chat}) + "\n")
    return path


def write_base(folder: Path, *, seed: int = 0) -> Path:
    """A model folder with Dream's architecture and a vocabulary of bytes."""
    if not folder.exists():
        export_folder(tiny_qwen(vocab_size=BYTE_VOCAB, pad_token_id=None, seed=seed), folder, mask_id=BYTE_MASK)
    return folder


def overrides(root: Path, name: str, *extra: str) -> list[str]:
    """Command-line overrides of a tiny fine-tuning of the base below `root`."""
    chats = root / "chats.jsonl"
    if not chats.exists():
        write_chats(chats)
    return [
        "model=qwen2_tiny",
        f"model.path={write_base(root / 'base')}",
        "peft=dora_r16",
        "peft.rank=4",
        "objective=sft",
        "data=chat_files",
        f"data.paths=[{chats}]",
        "data.validation_fraction=0.2",
        "data.length=96",
        "data.global_batch_sequences=4",
        "data.max_validation_sequences=4",
        f"data.cache_dir={root / 'cache'}",
        "soft_mask=warm",
        "optim=dream",
        "optim.lr=1e-2",
        "optim.warmup_steps=1",
        "trainer.max_steps=4",
        "trainer.val_every_steps=0",
        "trainer.log_every_steps=1",
        "trainer.accelerator=cpu",
        "callbacks.plots=false",
        "callbacks.checkpoint.keep_best=0",
        f"output_dir={root / name}",
        f"name={name}",
        *extra,
    ]


def generated(predictor: Predictor) -> list[list[int]]:
    prompts = [list(f"user: {text}\nassistant: ".encode()) for text in ("add 3", "max 1", "len 22")]
    canvas = from_prompts(prompts, new_tokens=12, mask_id=BYTE_MASK)
    order = ConfidenceOrder(measure=build_measure("entropy"), pace=Threshold(value=-2.0))
    sampler = Sampler(
        predictor, Blockwise(order, block_length=6), sampling=TokenSampling(temperature=0.1), cache=PrefixCache()
    )
    return canvas.texts(sampler.sample(canvas, RowNoise([1, 2, 3], canvas.positions_BL)).ids_BL)
