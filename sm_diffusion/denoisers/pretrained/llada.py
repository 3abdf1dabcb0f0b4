"""LLaDA-8B (arXiv 2502.09992): Llama's architecture under OLMo's parameter names, full attention, no shift.

The block is LLaDALlamaBlock: y = x + attn_out(attention(attn_norm(x))), out = y + ff_out(silu(ff_proj(h)) up_proj(h)),
h = ff_norm(y). It is Llama's with gate = ff_proj, up = up_proj, down = ff_out and the same rotary convention.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from sm_diffusion.denoisers.pretrained.hf import CheckpointLayout, pick
from sm_diffusion.types import UserError

MASK_ID = 126336  # <|mdm_mask|>
PAD_ID = 126081  # <|endoftext|>

# From records of others: not checked against the hub here.
PINNED = {"GSAI-ML/LLaDA-8B-Instruct": "08b83a6feb34df1a6011b80c3c00c7563e963b07"}

_SETTINGS = {
    "vocab_size": "embedding_size",
    "hidden_size": "d_model",
    "intermediate_size": "mlp_hidden_size",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "max_position_embeddings": "max_sequence_length",
    "rms_norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "weight_tying",
}
# What Llama's block computes; OLMo's has more switches.
_MUST_BE: dict[str, Any] = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "rope": True,
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "scale_logits": False,
}
_BLOCK = {
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
}
_OUTSIDE = {
    "model.transformer.wte.weight": "model.embed_tokens.weight",
    "model.transformer.ln_f.weight": "model.norm.weight",
    "model.transformer.ff_out.weight": "lm_head.weight",
}
_BLOCK_KEY = re.compile(r"model\.transformer\.blocks\.(\d+)\.(\w+)\.weight")


def configure(config: Mapping[str, Any]) -> LlamaConfig:
    """Llama's configuration from LLaDA's config.json."""
    wrong = [f"{name}={config[name]!r}" for name, value in _MUST_BE.items() if config.get(name, value) != value]
    if wrong:
        raise UserError(f"config.json: {', '.join(wrong)} is not what LLaDA-8B's blocks compute: cannot load it")
    settings = pick(config, _SETTINGS)
    settings |= {name: config[name] for name in ("eos_token_id", "pad_token_id") if config.get(name) is not None}
    rope = {"rope_type": "default", "rope_theta": config.get("rope_theta", 10000.0)}
    return LlamaConfig(**settings, hidden_act="silu", rope_parameters=rope, use_cache=False)


def rename(name: str) -> str:
    """Llama's parameter name for one of LLaDA's; names that are not LLaDA's stay as they are."""
    block = _BLOCK_KEY.fullmatch(name)
    if block and block[2] in _BLOCK:
        return f"model.layers.{block[1]}.{_BLOCK[block[2]]}.weight"
    return _OUTSIDE.get(name, name)


LAYOUT = CheckpointLayout(model_class=LlamaForCausalLM, configure=configure, rename=rename, shift_logits=False)
