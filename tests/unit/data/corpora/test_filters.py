"""Which records of code are used: layouts, licences, duplicates."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from sm_diffusion.data.stores.shard_format import read_manifest
from sm_diffusion.types import UserError
from tests.helpers.data import (
    CODE,
    document,
    file_corpus,
    shard_preparer,
    write_jsonl,
    write_parquet,
)


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
