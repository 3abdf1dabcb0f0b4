"""Sources of the hub: layouts, filters, detokenizers, duplicates, mixtures, chat mixes; a hub that does not answer."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sm_diffusion.app.build_data import build_datamodule
from sm_diffusion.config.compose import compose_config
from sm_diffusion.data.chat.mixes import ChatMix, MessageFiles
from sm_diffusion.data.corpora.detokenize import DETOKENIZERS
from sm_diffusion.data.corpora.hub import HubRepository, LocalFolder
from sm_diffusion.data.stores.mixture import MixtureTable
from sm_diffusion.data.stores.shard_format import read_manifest
from sm_diffusion.types import UserError
from tests.helpers.data import (
    document,
    file_corpus,
    one_line,
    shard_preparer,
    write_jsonl,
    write_openwebtext,
    write_parquet,
)

CODE = "def function_{0}(value):\n    return value + {0}  # adds {0} and nothing else\n"


def texts(corpus, split: str = "train") -> list[str]:
    return [found.text for found in (corpus.train() if split == "train" else corpus.validation())]


def counted(corpus, folder: Path) -> Counter[str]:
    preparer = shard_preparer(corpus, folder)
    preparer.prepare(workers=1)
    manifest = read_manifest(preparer.folder)
    assert manifest is not None
    return Counter(manifest.totals["train"]["refused"])


def stack(number: int, **changes: object) -> dict[str, object]:
    """A record of the-stack-dedup."""
    fields = {"content": CODE.format(number), "lang": "Python", "max_stars_repo_licenses": ["mit"], "size": 1}
    return {**fields, **changes}


def test_code_layouts_and_filters(tmp_path: Path) -> None:
    rows = [stack(number) for number in range(20)]
    rows += [stack(20, lang="Java"), stack(21, max_stars_repo_licenses=["mit", "gpl-3.0"]), stack(22, content="x = 1")]
    rows += [stack(23, content="a" * 200), stack(24, content="{}[]()" * 20 + "\n"), stack(25, content=CODE * 50)]
    chosen = {
        "text_field": "content",
        "languages": ("python",),
        "licenses": ("mit", "apache-2.0"),
        "min_characters": 20,
        "max_characters": 2000,
        "max_line_characters": 150,
        "min_alphanumeric": 0.25,
    }
    division = {"validation_documents": 0, "validation_fraction": 0.3}
    write_parquet(tmp_path / "dedup" / "data" / "python" / "train-00000-of-00001.parquet", rows)
    corpus = file_corpus(tmp_path / "dedup", record_filter=chosen, **division)
    expected = [CODE.format(number) for number in range(20)]
    assert sorted(texts(corpus) + texts(corpus, "validation")) == sorted(expected)
    assert texts(corpus, "validation")
    assert counted(corpus, tmp_path / "a") == {
        "language": 1,
        "license": 1,
        "too_short": 1,
        "too_long": 1,
        "long_line": 1,
        "few_letters": 1,
    }
    smol = [{**stack(number), "licenses": ["mit"]} for number in range(20)]
    write_jsonl(tmp_path / "smol" / "data" / "python" / "data.json", smol)
    parrot = [{"repo_name": "a/b", "content": CODE.format(number), "license": "mit"} for number in range(20)]
    write_jsonl(tmp_path / "parrot" / "file-000000000001.json.gz", parrot)
    for name, more in (("smol", {}), ("parrot", {"languages": ()})):
        other = file_corpus(
            tmp_path / name,
            record_filter={**chosen, **more},
            train_files=("*data.json", "*.json.gz"),
            **division,
        )
        assert texts(other) == texts(corpus), name
    labelled = file_corpus(tmp_path / "parrot", record_filter=chosen, train_files=("*.gz",), **division)
    with pytest.raises(UserError, match="no_language_field 20"):
        shard_preparer(labelled, tmp_path / "b", max_fault_share=0.5).prepare(workers=1)


def test_near_duplicates_keep_the_first_across_shards_and_never_cross_the_split(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = []
    for number in range(40):
        rows.append({"text": document(number)})
    for number in range(0, 40, 2):
        rows.append({"text": document(number).upper().replace(" ", draw.choice(["  ", "\n", " - "]))})
    write_parquet(tmp_path / "x" / "train-0.parquet", rows)
    corpus = file_corpus(tmp_path / "x", deduplicate=True, validation_documents=0, validation_fraction=0.3)
    preparer = shard_preparer(corpus, tmp_path / "cache")
    preparer.prepare(workers=1)
    manifest = read_manifest(preparer.folder)
    assert manifest is not None
    duplicates = [manifest.totals[split]["refused"].get("duplicate", 0) for split in ("train", "validation")]
    assert sum(duplicates) == 20
    assert all(duplicates)
    assert sum(manifest.totals[split]["documents"] for split in ("train", "validation")) == 40
    assert not any(shard.refused.get("duplicate") for shard in manifest.shards if shard.part[1] < 40), "the first stays"


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("wikitext", '1 @,@ 000 @-@ km road ( M1 ) , near " A " \'s end', '1,000-km road (M1), near "A"\'s end'),
        ("ptb", "mr. <unk> 's n't N N \\/ $ N", "mr. ?'sn't 1 1 / $ N"),
        ("lm1b", 'He said : " no " , it \'s $ 5 .', 'He said: "no", it\'s $5.'),
        ("lambada", " \u201cYes\u201d ", '\n"Yes"'),
        ("none", " as it is ", " as it is "),
    ],
)
def test_detokenizers(name: str, before: str, after: str) -> None:
    assert DETOKENIZERS[name](before) == after


def test_text8_is_cut_at_ninety_and_ninety_five_percent(tmp_path: Path) -> None:
    letters = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=4000))
    (tmp_path / "text8").write_text(letters)
    overrides = ["data=text8", f"data.path={tmp_path}", f"data.cache_dir={tmp_path / 'c'}", "data.length=100"]
    config = compose_config("train", [*overrides, "data.global_batch_sequences=4"])
    data = build_datamodule(config.data, seed=1, world_size=1)
    data.prepare()
    assert data.meta.splits["train"].tokens == 3600
    rows = [row for batch in data.val_dataloader() for row in batch.ids_BL.tolist()]
    assert "".join(map(data.decode, rows)) == letters[3600:3800]


EVALUATION = {
    "lm1b": ("plain_text/test/0000.parquet", "text"),
    "wikitext103": ("wikitext-103-raw-v1/test-00000-of-00001.parquet", "text"),
    "ptb": ("penn_treebank/test/0000.parquet", "sentence"),
    "ag_news": ("data/test-00000-of-00001.parquet", "text"),
    "pubmed": ("pubmed/test/0000.parquet", "article"),
    "arxiv": ("arxiv/test/0000.parquet", "article"),
    "lambada": ("data/lambada_test_en.jsonl", "text"),
}


@pytest.mark.parametrize("name", EVALUATION)
def test_evaluation_sources_need_their_test_part_only(tmp_path: Path, name: str) -> None:
    file, field = EVALUATION[name]
    rows = [{field: document(number), "label": 1} for number in range(30)]
    (write_parquet if file.endswith("parquet") else write_jsonl)(tmp_path / "hub" / file, rows)
    overrides = [f"data={name}", f"data.path={tmp_path / 'hub'}", f"data.cache_dir={tmp_path}", "data.length=16"]
    config = compose_config("train", [*overrides, "data.tokenizer.kind=byte"])
    data = build_datamodule(config.data, seed=1, world_size=1)
    data.prepare()
    assert data.meta.splits["validation"].documents == 30
    assert sum(len(batch.ids_BL) for batch in data.val_dataloader()) == data.meta.splits["validation"].sequences
    with pytest.raises(UserError, match="more than the 0 training sequences"):
        data.train_dataloader()


def test_hub_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError) as info:
        HubRepository("Skylion007/openwebtext", "main", tmp_path).locate(["*train-*.parquet"])
    message = one_line(info.value)
    for words in (
        "tried http://127.0.0.1:9/datasets/Skylion007/openwebtext at revision main",
        "download the files that match *train-*.parquet elsewhere and set data.path=FOLDER",
    ):
        assert words in message
    with pytest.raises(UserError, match=r"data.path=.*nowhere: no such folder"):
        LocalFolder(str(tmp_path / "nowhere")).locate(["*"])
    (tmp_path / "readme.md").write_text("x")
    with pytest.raises(UserError, match=r"no file matches \*\.parquet \(it holds readme\.md\)"):
        LocalFolder(str(tmp_path)).locate(["*.parquet"])
    config = compose_config("train", ["data=text8"])
    with pytest.raises(UserError, match=r"data=text8: not on the hub: get it from http.*set data\.path=FOLDER"):
        build_datamodule(config.data, seed=1, world_size=1)


class Numbers:
    """A table whose every sequence is its own number."""

    length = 2

    def __init__(self, first: int, count: int) -> None:
        self._first, self._count = first, count

    def __len__(self) -> int:
        return self._count

    def rows(self, indices) -> np.ndarray:
        return np.array([[self._first + index] * 2 for index in indices], dtype=np.int64)


def test_mixture_keeps_its_proportions_and_shows_everything() -> None:
    table = MixtureTable(tables=[Numbers(0, 60), Numbers(100, 7)], weights=[3.0, 1.0], seed=5)
    seen = table.rows(range(len(table)))[:, 0]
    counts = Counter(seen.tolist())
    assert table.counts == [60, 20]
    assert set(counts) == {*range(60), *range(100, 107)}
    assert {counts[number] for number in range(60)} == {1}
    assert {counts[number] for number in range(100, 107)} == {2, 3}
    again = MixtureTable(tables=[Numbers(0, 60), Numbers(100, 7)], weights=[0.75, 0.25], seed=5)
    assert again.rows(range(len(again)))[:, 0].tolist() == seen.tolist()
    drawn = {
        str(MixtureTable(tables=[Numbers(0, 60), Numbers(100, 7)], weights=[3, 1], seed=s).rows(range(80)).tolist())
        for s in range(8)
    }
    assert len(drawn) > 1, "which sequences appear once more follows the seed"


def test_mixture_from_the_configuration(tmp_path: Path) -> None:
    write_openwebtext(tmp_path / "owt")
    write_jsonl(tmp_path / "code" / "file-1.json.gz", [{"content": CODE.format(n) * 3} for n in range(40)])
    overrides = [
        "data=mixture",
        f"data.parts.openwebtext.path={tmp_path / 'owt'}",
        "data.parts.openwebtext.validation_documents=10",
        f"data.parts.code.path={tmp_path / 'code'}",
        "data.parts.code.validation_fraction=0.2",
        "data.parts.code.deduplicate=false",
        f"data.cache_dir={tmp_path / 'cache'}",
        "data.tokenizer.kind=byte",
        "data.length=16",
        "data.global_batch_sequences=8",
    ]
    orders = []
    for seed in (1, 1, 2):
        data = build_datamodule(compose_config("train", overrides).data, seed=seed, world_size=1)
        data.prepare()
        orders.append([batch.ids_BL.tolist() for batch in data.train_dataloader()])
    assert orders[0] == orders[1] != orders[2]
    assert data.meta.splits["validation"].documents > 10
    for change, words in (
        ("~data.mixture.code", "name exactly the corpora of data.parts: code, openwebtext"),
        ("data.mixture.code=0", "data.mixture.code=0.0: a weight must be positive"),
        ("data.parts.code.streaming=true", "data.parts.code.streaming=true: a mixture is made of prepared corpora"),
    ):
        with pytest.raises(UserError, match=words):
            build_datamodule(compose_config("train", [*overrides, change]).data, seed=1, world_size=1)


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
    data = build_datamodule(compose_config("train", overrides).data, seed=1, world_size=1)
    data.prepare()
    batch = next(iter(data.train_dataloader()))
    assert batch.maskable_BL is not None
    assert not batch.maskable_BL[:, :5].any(), "the prompt is never masked"
    assert batch.maskable_BL.any()
