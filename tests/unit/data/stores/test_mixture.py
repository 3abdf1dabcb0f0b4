"""Mixtures of corpora keep their proportions."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from sm_diffusion.config.compose import compose_config
from sm_diffusion.data.stores.mixture import MixtureTable
from sm_diffusion.types import UserError
from tests.helpers.data import (
    CODE,
    write_jsonl,
    write_openwebtext,
)


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
        data = compose_config("train", overrides).data.datamodule(seed=seed, world_size=1)
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
            compose_config("train", [*overrides, change]).data.datamodule(seed=1, world_size=1)
