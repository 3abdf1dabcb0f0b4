"""Sources of the hub: which files of theirs are read, and a hub that does not answer."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from sm_diffusion.config.compose import compose_config
from sm_diffusion.data.corpora.hub import HubRepository, LocalFolder
from sm_diffusion.types import UserError
from tests.helpers.data import (
    document,
    one_line,
    write_jsonl,
    write_parquet,
)


def test_text8_is_cut_at_ninety_and_ninety_five_percent(tmp_path: Path) -> None:
    letters = "".join(random.Random(1).choices("abcdefghijklmnopqrstuvwxyz", k=4000))
    (tmp_path / "text8").write_text(letters)
    overrides = ["data=text8", f"data.path={tmp_path}", f"data.cache_dir={tmp_path / 'c'}", "data.length=100"]
    config = compose_config("train", [*overrides, "data.global_batch_sequences=4"])
    data = config.data.datamodule(seed=1, world_size=1)
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
    data = config.data.datamodule(seed=1, world_size=1)
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
        config.data.datamodule(seed=1, world_size=1)
