"""Conversations on disk, their cache, and padded batches that know neither ranks nor workers."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from sm_diffusion.data.chat.cache import as_rows, prepare_chat
from sm_diffusion.data.chat.collate import ChatSample
from sm_diffusion.data.chat.format import RoleLines
from sm_diffusion.data.chat.mixes import ChatMix, MessageFiles
from sm_diffusion.data.chat.python_chat import functions_of
from sm_diffusion.data.chat.rows import PaddedRows
from sm_diffusion.data.chat.sources import ChatFiles
from sm_diffusion.data.corpora.hub import LocalFolder
from sm_diffusion.data.loader import LoaderSettings, TrainLoader, eval_loader, table_loader
from sm_diffusion.data.tokenizers.base import ByteTokenizer
from sm_diffusion.types import Batch, UserError
from tests.helpers.chats import write_chats
from tests.helpers.data import write_jsonl

SAMPLES = [ChatSample(list(range(1, 6 + n)), 3) for n in range(12)]


SETTINGS = LoaderSettings(
    global_batch_sequences=4, micro_batch_sequences=1, eval_batch_sequences=5, num_workers=0, seed=0
)
PADDED = PaddedRows(pad_id=0, pads_are_maskable=True, seed=5)


def loader(rank: int = 0, world_size: int = 1) -> TrainLoader:
    return table_loader(as_rows(SAMPLES), SETTINGS, rank=rank, world_size=world_size, finish=PADDED)


def same(a: Batch, b: Batch) -> bool:
    assert a.maskable_BL is not None
    assert b.maskable_BL is not None
    pairs = ((a.ids_BL, b.ids_BL), (a.rows_B, b.rows_B), (a.maskable_BL, b.maskable_BL))
    return all(torch.equal(x, y) for x, y in pairs)


def test_batches_do_not_depend_on_the_number_of_processes() -> None:
    one = list(loader())
    two = [list(loader(rank, 2)) for rank in (0, 1)]
    merged = [batch for pair in zip(*two, strict=True) for batch in pair]
    assert len(one) == len(merged) == 12
    by_row = [sorted(part, key=lambda batch: int(batch.rows_B)) for part in (one[:4], merged[:4])]
    assert all(same(a, b) for a, b in zip(*by_row, strict=True))
    assert len({batch.ids_BL.shape[1] for batch in one}) > 1, "the padding is random"


def test_a_resumed_loader_goes_on_where_it_was() -> None:
    whole = loader()
    expected = list(itertools.chain(whole, whole))
    first = loader()
    taken = list(itertools.islice(first, 7))
    second = loader()
    second.load_state_dict(first.state_dict())
    rest = list(itertools.chain(second, second))
    assert all(same(a, b) for a, b in zip(expected[:7] + expected[7:], taken + rest, strict=False))


def test_prompts_are_kept_and_padding_is_maskable() -> None:
    batch = next(iter(eval_loader(as_rows(SAMPLES), SETTINGS, rank=0, world_size=1, finish=PADDED)))
    assert batch.maskable_BL is not None
    assert not batch.maskable_BL[:, :3].any()
    assert batch.maskable_BL[:, 3:].all()
    assert batch.ids_BL.shape[1] % 8 == 0


def test_cache_counts_and_is_opened_again(tmp_path: Path) -> None:
    path = write_chats(tmp_path / "chats.jsonl")
    with path.open("a") as file:
        file.write(json.dumps({"messages": [{"role": "user", "content": "no answer"}]}) + "\n")
    tokenizer = RoleLines(ByteTokenizer())
    settings = {"tokenizer": tokenizer, "max_tokens": 96, "min_response_tokens": 5, "cache_dir": tmp_path / "cache"}
    source = ChatFiles(paths=[str(path)], messages_field="messages", validation_fraction=0.2)
    cache = prepare_chat(source=source, **settings)
    kept = sum(split.sequences for split in cache.meta.splits.values())
    assert kept == 60
    refused = [split.refused for split in cache.meta.splits.values()]
    assert sorted(map(str, refused)) == ["{'no_prompt_and_response': 1}", "{}"]
    again = prepare_chat(source=source, **settings)
    assert again.meta == cache.meta
    row = again.train.rows([0])[0]
    text = tokenizer.decode(row[2 : 2 + row[0]].tolist())
    assert text.startswith("user: ")
    assert "\nassistant: def " in text
    assert text.endswith("<|endoftext|>")
    assert tokenizer.decode(row[2 : 2 + row[1]].tolist()).endswith("assistant: ")


def test_what_is_refused_is_counted_in_the_cache(tmp_path: Path) -> None:
    """Of a mix: bytes that are no text, no field, no answer; once encoded: too long, too short."""
    good = [{"messages": [chat("user", f"ask {n}"), chat("assistant", f"answer {n}")]} for n in range(40)]
    bad: list[object] = [
        b'{"messages": "caf\xe9"}',
        {"other": 1},
        {"messages": [chat("user", "no answer")]},
        {"messages": [chat("user", "long"), chat("assistant", "x" * 200)]},
        {"messages": [chat("user", "short"), chat("assistant", "ab")]},
        b"",
    ]
    write_jsonl(tmp_path / "chats" / "a.jsonl", [*good, *bad])
    parts = [MessageFiles(LocalFolder(str(tmp_path / "chats")), ("*.jsonl",))]
    source = ChatMix(parts=parts, validation_fraction=0.2, max_samples=None)
    settings = {"tokenizer": RoleLines(ByteTokenizer()), "max_tokens": 96, "min_response_tokens": 5}
    meta = prepare_chat(source=source, cache_dir=tmp_path / "cache", **settings).meta
    assert meta.refused == {"no_messages": 1, "no_response": 1, "not_utf8": 1}
    counted = Counter[str]()
    for split in meta.splits.values():
        counted.update(split.refused)
    assert counted == {"too_long": 1, "short_response": 1}
    (written,) = (tmp_path / "cache").glob("chat-*/meta.json")
    assert json.loads(written.read_text())["refused"] == meta.refused
    with pytest.raises(UserError, match=r"no conversation is left for train \(refused: too_long \d+; data.length=9,"):
        prepare_chat(source=source, cache_dir=tmp_path / "cache", **{**settings, "max_tokens": 9})


def chat(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"messages": "caf\xe9"}', r"bad\.jsonl: not UTF-8"),
        ("{", r"line 1: not JSON"),
        ("[]", r"line 1: no field 'messages': set data.messages_field"),
        ('{"messages": "x"}', r'messages must be a list of \{"role": text, "content": text\}'),
    ],
)
def test_bad_lines(tmp_path: Path, line: str | bytes, message: str) -> None:
    (tmp_path / "bad.jsonl").write_bytes((line if isinstance(line, bytes) else line.encode()) + b"\n")
    source = ChatFiles(paths=[str(tmp_path / "bad.jsonl")], messages_field="messages", validation_fraction=0.2)
    with pytest.raises(UserError, match=message):
        list(source.conversations("train"))


def test_functions_become_requests_and_answers() -> None:
    documented = 'def f(a, b=1):\n    """Add two numbers.\n\n    More."""\n    c = a + b\n    return c\n'
    (chat,) = functions_of(f"{documented}\ndef g():\n    pass\n", "module.py")
    assert chat.messages[0]["content"] == "def f(a, b=1): Add two numbers."
    assert chat.messages[1]["content"] == "c = a + b\nreturn c"
