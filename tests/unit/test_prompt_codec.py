"""Prompts to ids: role lines, chat templates, the start of a reply, and where an answer ends."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sm_diffusion.data.chat.prompt_codec import PlainCodec, TemplateCodec
from sm_diffusion.data.chat.tokenizers import PlainChat
from sm_diffusion.data.tokenizers.base import ByteTokenizer
from sm_diffusion.types import UserError

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASKED = [{"role": "user", "content": "add 1"}]


def template_tokenizer(**changes):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "mask_token": "<|mask|>"} | changes
    found = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    found.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    found.chat_template = TEMPLATE
    return found


def test_role_lines_are_those_of_fine_tuning():
    codec, trained = PlainCodec(ByteTokenizer(), chat=True), PlainChat(ByteTokenizer())
    sample = trained.encode([*ASKED, {"role": "assistant", "content": "x"}])
    assert codec.encode_messages(ASKED) == sample.ids[: sample.prompt_length]
    assert codec.encode_messages(ASKED, "def") == [*sample.ids[: sample.prompt_length], *b"def"]


def test_answers_end_at_the_first_end_token():
    codec = PlainCodec(ByteTokenizer(), chat=False)
    assert codec.answer([*b"ab", 256, *b"c"]) == ("ab", 2, True)
    assert codec.answer([256, 256]) == ("", 0, True)
    assert codec.answer([*b"ab"]) == ("ab", 2, False)


def test_chat_template():
    tokenizer = template_tokenizer()
    codec = TemplateCodec(tokenizer, name="tiny")
    ids = codec.encode_messages(ASKED, "```python\n")
    assert codec.decode(ids) == "<|im_start|>user\nadd 1<|im_end|>\n<|im_start|>assistant\n```python\n"
    end, eos = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    assert codec.end_ids == {end, eos}
    assert codec.answer([*codec.encode_text("hi"), end, eos, eos]) == ("hi", 2, True)
    assert codec.mask_id == tokenizer.mask_token_id
    assert codec.vocab_size == len(tokenizer)


def test_without_a_template_there_is_no_chat():
    tokenizer = template_tokenizer()
    tokenizer.chat_template = None
    codec = TemplateCodec(tokenizer, name="base")
    assert not codec.chat
    assert codec.decode(codec.encode_text("def f(x):\n")) == "def f(x):\n"


def test_what_a_tokenizer_must_have():
    with pytest.raises(UserError, match="bare: the tokenizer has no mask token"):
        TemplateCodec(template_tokenizer(mask_token=None), name="bare")
    with pytest.raises(UserError, match="neither a padding token nor an end of text"):
        TemplateCodec(template_tokenizer(eos_token=None, pad_token=None), name="bare")
