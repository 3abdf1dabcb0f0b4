"""Dream-7B and Dream-Coder-7B (arXiv 2508.15487): Qwen2.5-7B with full attention, logits shifted by one position.

The published checkpoints have model_type "Dream" and Qwen2's own parameter names; nothing of their remote code is run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import Qwen2Config, Qwen2ForCausalLM

from sm_diffusion.denoisers.pretrained.hf import CheckpointLayout, pick
from sm_diffusion.types import UserError

MASK_ID = 151666  # <|mask|>
PAD_ID = 151643  # <|endoftext|>, also the end of a text

# Commits, so that a run next year reads the same weights. From records of others: not checked against the hub here.
PINNED = {
    "Dream-org/Dream-v0-Instruct-7B": "05334cb9faaf763692dcf9d8737c642be2b2a6ae",
    "Dream-org/Dream-v0-Base-7B": "6572adb5535263e4d1a337b56942ba48b6dee2a9",
    "Dream-org/Dream-Coder-v0-Instruct-7B": "5d9e88c723af9045f362748b5284bdf43d9c501e",
}

_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
)
_OPTIONAL = ("max_position_embeddings", "hidden_act", "tie_word_embeddings", "initializer_range", "attention_dropout")
_OPTIONAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def configure(config: Mapping[str, Any]) -> Qwen2Config:
    """Qwen2's configuration from Dream's config.json. Sliding windows are dropped: attention is full everywhere."""
    if config.get("use_mrope"):
        raise UserError("config.json: use_mrope is set: multimodal rotary embeddings are not supported")
    settings = pick(config, {name: name for name in _REQUIRED})
    settings |= {name: config[name] for name in (*_OPTIONAL, *_OPTIONAL_IDS) if config.get(name) is not None}
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {"rope_type": "default"}
    if "rope_theta" in config:
        rope = {**rope, "rope_theta": config["rope_theta"]}
    return Qwen2Config(**settings, rope_parameters=rope, use_cache=False)


LAYOUT = CheckpointLayout(
    model_class=Qwen2ForCausalLM, configure=configure, rename=lambda name: name, shift_logits=True
)


def load_tokenizer(folder: Path) -> Any:
    """Dream's tokenizer without its remote code: a Qwen2 byte-level BPE from vocab.json and merges.txt.

    Its special tokens (<|mask|> among them) and its chat template come from tokenizer_config.json. UserError if the
    folder lacks them, the vocabulary is empty, or there is no mask token.
    """
    from transformers import Qwen2Tokenizer

    missing = [name for name in ("vocab.json", "merges.txt", "tokenizer_config.json") if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing)}: download the whole repository of the model")
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    if len(tokenizer) <= 256:
        raise UserError(f"{folder}: the tokenizer is empty ({len(tokenizer)} tokens): vocab.json is damaged")
    if tokenizer.mask_token_id is None:
        raise UserError(f"{folder}: the tokenizer has no mask token: set mask_token in its tokenizer_config.json")
    return tokenizer
