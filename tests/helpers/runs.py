"""Tiny real runs: a few kB of text, a few thousand parameters, the same code path as any other run."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch

from sm_diffusion.app.train import train
from sm_diffusion.config.compose import compose_config

WORDS = (*"abcdefghij", "the", "cat", "sat", "on", "a", "mat", "and", "then", "it", "ran")


def write_corpus(folder: Path, *, num_documents: int = 60, seed: int = 0) -> Path:
    """A folder of short English-like .txt files."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(num_documents):
        (folder / f"{index}.txt").write_text(" ".join(rng.choices(WORDS, k=120)))
    return folder


def overrides(root: Path, name: str, *extra: str) -> list[str]:
    """Command-line overrides of a tiny run whose corpus, cache and folder lie below `root`."""
    corpus = root / "corpus"
    if not corpus.exists():
        write_corpus(corpus)
    return [
        "data=text_files",
        f"data.paths=[{corpus}]",
        "data.validation_fraction=0.2",
        "data.tokenizer.kind=char",
        "data.length=16",
        "data.global_batch_sequences=8",
        "data.max_validation_sequences=32",
        f"data.cache_dir={root / 'cache'}",
        "model.width=16",
        "model.num_blocks=1",
        "model.num_heads=2",
        "model.cond_width=8",
        "soft_mask=warm",
        "optim=small",
        "optim.warmup_steps=2",
        "trainer.max_steps=6",
        "trainer.val_every_steps=3",
        "trainer.log_every_steps=2",
        "trainer.accelerator=cpu",
        "callbacks.plots=false",
        "callbacks.checkpoint.every_steps=3",
        f"output_dir={root / name}",
        f"name={name}",
        *extra,
    ]


def run(root: Path, name: str, *extra: str) -> dict[str, Any]:
    return train(compose_config("train", overrides(root, name, *extra)))


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    tree = torch.load(path, weights_only=True)
    found = {f"state.{k}": v for k, v in tree["state_dict"].items()}
    found |= {f"ema.{k}": v for k, v in tree["callbacks"]["EMACallback"]["shadow"].items()}
    for index, state in tree["optimizer_states"][0]["state"].items():
        found |= {f"optimizer.{index}.{k}": v for k, v in state.items()}
    return found


def assert_same_checkpoint(a: Path, b: Path) -> None:
    first, second = tensors_of(a), tensors_of(b)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
