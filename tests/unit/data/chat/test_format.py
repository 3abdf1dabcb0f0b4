"""Conversations to ids: role lines, chat templates, the start of a reply, and where an answer ends."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sm_diffusion.data.chat.format import ChatTemplate, RoleLines, stop_ids_of
from sm_diffusion.data.tokenizers.base import ByteTokenizer, CharTokenizer
from sm_diffusion.types import UserError

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASKED = [{"role": "user", "content": "add 1"}]
REPLY = {"role": "assistant", "content": "x"}


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


def test_the_prompt_is_that_of_fine_tuning():
    for chat in (RoleLines(ByteTokenizer()), ChatTemplate(template_tokenizer(), name="tiny")):
        sample = chat.sample([*ASKED, REPLY])
        assert chat.prompt(ASKED) == sample.ids[: sample.prompt_length]
        assert chat.prompt(ASKED, "def") == [*chat.prompt(ASKED), *b"def"] or chat.kind == "template"
        assert chat.decode(chat.prompt(ASKED, "def")) == chat.render(ASKED) + "def"
        assert sample.ids[sample.prompt_length :][-1] in {*chat.stop_ids, *chat.encode("\n")}


def test_role_lines():
    chat = RoleLines(ByteTokenizer())
    sample = chat.sample([*ASKED, REPLY])
    assert sample.ids == [*b"user: add 1\nassistant: x", 256]
    assert sample.prompt_length == len(b"user: add 1\nassistant: ")
    assert chat.sample([{"role": "HUMAN", "content": "add 1"}, {"role": "ASSISTANT", "content": "x"}]) == sample
    assert chat.render([*ASKED, REPLY], add_generation_prompt=False) == "user: add 1\nassistant: x"
    assert chat.stop_ids == {256}


def test_conversations_without_prompt_or_response():
    for chat in (RoleLines(ByteTokenizer()), ChatTemplate(template_tokenizer(), name="tiny")):
        assert chat.sample([REPLY]) is None
        assert chat.sample([*ASKED, *ASKED]) is None
    # A template that rewrites the prompt once an answer follows.
    rewriting = template_tokenizer()
    rewriting.chat_template = "{% if add_generation_prompt %}hello {% endif %}" + TEMPLATE
    assert ChatTemplate(rewriting, name="tiny").sample([*ASKED, REPLY]) is None


def test_chat_template():
    tokenizer = template_tokenizer()
    chat = ChatTemplate(tokenizer, name="tiny", forbidden=["<|im_start|>", "<unknown>"])
    ids = chat.prompt(ASKED, "```python\n")
    assert chat.decode(ids) == "<|im_start|>user\nadd 1<|im_end|>\n<|im_start|>assistant\n```python\n"
    assert ids[: len(chat.prompt(ASKED))] == tokenizer.apply_chat_template(
        ASKED, tokenize=True, add_generation_prompt=True, return_dict=False
    )
    end, eos, start = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>", "<|im_start|>"])
    assert chat.stop_ids == {end, eos}
    assert chat.forbidden_ids == {start}
    assert chat.mask_id == tokenizer.mask_token_id
    assert chat.vocab_size == len(tokenizer)
    assert chat.decode([*chat.encode("hi"), len(tokenizer) + 3]) == "hi", "rows that no token has are silent"
    sample = chat.sample([{"role": "system", "content": "s"}, *ASKED, REPLY, *ASKED, {**REPLY, "content": "y"}])
    assert chat.decode(sample.ids[sample.prompt_length :]) == "y<|im_end|>\n"


def test_every_special_token_after_a_reply_ends_an_answer():
    tokenizer = template_tokenizer()
    tokenizer.chat_template = TEMPLATE.replace("<|im_end|>", "<|im_end|><|mask|>")
    assert ChatTemplate(tokenizer, name="tiny").stop_ids == set(
        tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|mask|>", "<|endoftext|>"])
    )


def test_what_ends_an_answer_of_a_model_of_plain_text():
    assert stop_ids_of(ByteTokenizer(), None) == {256}
    assert stop_ids_of(CharTokenizer(), None) == frozenset(), "the space ends nothing"
    assert stop_ids_of(ByteTokenizer(), RoleLines(ByteTokenizer())) == {256}


def test_encoded_conversations_are_kept_by_everything_that_decides_their_ids():
    same, other = template_tokenizer(), template_tokenizer()
    other.chat_template = TEMPLATE.replace("assistant", "model")
    prints = [ChatTemplate(hub, name="x").fingerprint() for hub in (template_tokenizer(), same, other)]
    assert prints[0] == prints[1] != prints[2]
    assert ChatTemplate(same, name="x", forbidden=["<|im_end|>"]).fingerprint() != prints[0]
    assert ChatTemplate(same, name="x").template_sha256() != ChatTemplate(other, name="x").template_sha256()
    assert RoleLines(ByteTokenizer()).fingerprint() != RoleLines(CharTokenizer()).fingerprint()


def test_what_a_tokenizer_must_have():
    with pytest.raises(UserError, match="bare: the tokenizer has no mask token"):
        ChatTemplate(template_tokenizer(mask_token=None), name="bare")
    with pytest.raises(UserError, match="neither a padding token nor an end of text"):
        ChatTemplate(template_tokenizer(eos_token=None, pad_token=None), name="bare")
    silent = template_tokenizer()
    silent.chat_template = None
    with pytest.raises(UserError, match="bare: the tokenizer has no chat template"):
        ChatTemplate(silent, name="bare")
    added = template_tokenizer(mask_token=None)
    assert ChatTemplate(added, name="auto", mask="auto").mask_id == len(added), "the first id that no token has"
