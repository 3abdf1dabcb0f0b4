"""Tiny Qwen2 and Llama models for the tests of the 7B backbones, and the reference's tiny Dream."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from sm_diffusion.denoisers.pretrained.hf import HFDenoiser
from tests.helpers.golden import Golden

VOCAB, WIDTH, MASK, PAD = 151, 64, 150, 149


def tiny_config(**changes) -> Qwen2Config:
    settings = {
        "vocab_size": VOCAB,
        "hidden_size": WIDTH,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "pad_token_id": PAD,
    }
    return Qwen2Config(**(settings | changes))


def visible(lm: torch.nn.Module, seed: int = 0) -> None:
    """Random weights large enough that attention and every position matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.15 * noise)


def tiny_qwen(*, shift_logits: bool = True, seed: int = 0, **changes) -> HFDenoiser:
    lm = Qwen2ForCausalLM(tiny_config(**changes))
    visible(lm, seed)
    return HFDenoiser(lm, shift_logits=shift_logits).eval()


def tiny_llama(seed: int = 0) -> HFDenoiser:
    """LLaDA's shape: as many key heads as query heads, no biases, no shift."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        tie_word_embeddings=False,
    )
    lm = LlamaForCausalLM(config)
    visible(lm, seed)
    return HFDenoiser(lm, shift_logits=False).eval()


def golden_dream(*, shift_logits: bool = True) -> HFDenoiser:
    """The reference's tiny Dream with its weights."""
    weights = Golden("dream_weights")
    lm = Qwen2ForCausalLM(tiny_config())
    lm.load_state_dict({name: weights[name] for name in weights.keys})
    return HFDenoiser(lm, shift_logits=shift_logits).eval()
