"""Mixes of conversations in the layouts of the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from sm_diffusion.config.compose import compose_config
from sm_diffusion.data.chat.mixes import ChatMix, MessageFiles
from sm_diffusion.data.corpora.hub import LocalFolder
from sm_diffusion.types import UserError
from tests.helpers.data import (
    write_jsonl,
    write_parquet,
)


def chat(number: int, *, roles: tuple[str, str] = ("user", "assistant")) -> list[dict[str, str]]:
    return [{"role": roles[0], "content": f"question {number}"}, {"role": roles[1], "content": f"answer {number}"}]


def test_chat_mixes(tmp_path: Path) -> None:
    rows = [{"id": str(number), "messages": chat(number), "source": "x"} for number in range(30)]
    rows += [
        {"messages": messages}
        for messages in (
            chat(30)[:1],
            chat(31)[1:],
            [],
            [{"role": "tool", "content": "42"}, *chat(32)],
            [{"role": "user", "content": "<tool_call>"}, *chat(33)],
            [*chat(34)[:1], {"role": "assistant", "content": " "}],
        )
    ]
    write_parquet(tmp_path / "tulu" / "data" / "train-00000-of-00001.parquet", rows)
    ling = [{"mid": n, "messages": chat(n, roles=("HUMAN", "ASSISTANT")), "tags": ["a"]} for n in range(100, 120)]
    write_jsonl(tmp_path / "ling" / "data.jsonl", [*ling, {"messages": "text"}, {"messages": [{"role": "user"}]}])
    parts = [MessageFiles(LocalFolder(str(tmp_path / name)), ("*.parquet", "*.jsonl")) for name in ("tulu", "ling")]
    mix = ChatMix(parts=parts, validation_fraction=0.2, max_samples=None)
    train, validation = list(mix.conversations("train")), list(mix.conversations("validation"))
    assert mix.refused == {
        "no_response": 2,
        "no_prompt": 1,
        "no_messages": 2,
        "tool_call": 2,
        "not_role_and_content": 1,
    }
    found = sorted(message["content"] for conversation in [*train, *validation] for message in conversation.messages)
    expected = [*range(30), *range(100, 120)]
    assert found == sorted(word for n in expected for word in (f"question {n}", f"answer {n}"))
    assert {m["role"] for c in [*train, *validation] for m in c.messages} == {"user", "assistant"}
    assert validation
    assert not {c.text for c in train} & {c.text for c in validation}
    few = ChatMix(parts=parts, validation_fraction=0.2, max_samples=29)
    kept = [*few.conversations("train"), *few.conversations("validation")]
    assert len(kept) + sum(few.refused.values()) == 29
    assert {c.text for c in kept} < {c.text for c in [*train, *validation]}
    write_jsonl(tmp_path / "bad" / "data.jsonl", [{"messages": chat(1)[:1]}] * 3)
    bad = ChatMix(
        parts=[MessageFiles(LocalFolder(str(tmp_path / "bad")), ("*",))], validation_fraction=0.2, max_samples=None
    )
    with pytest.raises(UserError, match=r"no usable conversation \(refused: no_response 3\)"):
        list(bad.conversations("train"))


@pytest.mark.parametrize("name", ["chat_mix", "chat_code"])
def test_chat_mixes_from_the_configuration(tmp_path: Path, name: str) -> None:
    overrides = [f"data={name}", f"data.cache_dir={tmp_path / 'cache'}", "data.tokenizer.kind=byte", "data.length=64"]
    overrides.append("data.validation_fraction=0.2")
    for part in {"chat_mix": ("smoltalk", "tulu"), "chat_code": ("ling",)}[name]:
        roles = ("HUMAN", "ASSISTANT") if part == "ling" else ("user", "assistant")
        rows = [{"messages": chat(number, roles=roles)} for number in range(40)]
        write_parquet(tmp_path / part / "data" / "all" / "train-00000-of-00001.parquet", rows)
        overrides.append(f"data.parts.{part}.path={tmp_path / part}")
    data = compose_config("train", overrides).data.datamodule(seed=1, world_size=1)
    data.prepare()
    batch = next(iter(data.train_dataloader()))
    assert batch.maskable_BL is not None
    assert not batch.maskable_BL[:, :5].any(), "the prompt is never masked"
    assert batch.maskable_BL.any()
