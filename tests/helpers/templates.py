"""A tiny tokenizer of transformers with a chat template, and a model folder that goes with it."""

from __future__ import annotations

from pathlib import Path

import tokenizers
from tokenizers import decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sm_diffusion.denoisers.pretrained.export import export_folder
from tests.helpers.qwen import tiny_qwen

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|mask|>"]
END, START, TURN, MASK = range(256, 260)
# Qwen's form.
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_template_tokenizer(*, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """Bytes, then four special tokens: V = 260."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = tokenizers.Tokenizer(models.BPE({symbol: index for index, symbol in enumerate(alphabet)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=SPECIAL[0],
        pad_token=SPECIAL[0],
        mask_token=SPECIAL[3],
        additional_special_tokens=SPECIAL[1:3],
        chat_template=template,
    )


def write_model(folder: Path, *, seed: int = 0, template: str | None = TEMPLATE) -> Path:
    """A folder as published: Dream's architecture in float32, tokenizer and chat template beside it."""
    if not folder.exists():
        export_folder(tiny_qwen(vocab_size=MASK + 1, pad_token_id=None, seed=seed), folder, mask_id=MASK)
        tiny_template_tokenizer(template=template).save_pretrained(folder)
    return folder
