"""The contract of all training data: the same global batches on 1, 2, 8 ranks and 0, 2 workers, resumed on any of them.

Loaders are made for (rank, world size) in this process; `test_data_ranks.py` does it in two real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from sm_diffusion.data.chat.cache import as_rows
from sm_diffusion.data.chat.collate import ChatSample
from sm_diffusion.data.chat.rows import PackedRows, PaddedRows
from sm_diffusion.data.loader import LoaderSettings, TrainLoader, table_loader
from sm_diffusion.data.stores.base import (
    CachedTokens,
    MixedTokens,
    Place,
    PreparedTokens,
    ShardedTokens,
    Storage,
    StreamedTokens,
)
from sm_diffusion.data.stores.stream import StreamLoader, StreamSettings
from sm_diffusion.data.tokenizers.base import ByteTokenizer
from sm_diffusion.types import Batch
from tests.helpers.data import file_corpus, write_openwebtext

G, STEPS, LENGTH = 8, 9, 32
SETTINGS = LoaderSettings(
    global_batch_sequences=G, micro_batch_sequences=1, eval_batch_sequences=4, num_workers=0, seed=3
)
Loader = TrainLoader | StreamLoader
Make = Callable[[LoaderSettings, int, int], Loader]  # (settings, rank, world size)
KINDS = ["packed text", "prepared shards", "finished folder", "mixture", "stream", "chat, padded", "chat, packed"]


def chat(kind: str) -> Make:
    samples = [ChatSample(list(range(1, 6 + number % 13)), 3) for number in range(40)]
    common = {"pad_id": 0, "pads_are_maskable": True, "seed": 5}
    rows = PackedRows(**common, row_tokens=96) if kind == "chat, packed" else PaddedRows(**common)
    return lambda settings, rank, world: table_loader(
        as_rows(samples), settings, rank=rank, world_size=world, finish=rows
    )


@pytest.fixture(scope="module")
def makers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Make]:
    folder = tmp_path_factory.mktemp("contract")
    corpus = file_corpus(write_openwebtext(folder / "owt", documents=25))
    place = Place(tokenizer=ByteTokenizer(), length=LENGTH, cache_dir=folder / "cache")
    sharded = ShardedTokens(corpus, max_fault_share=0.0, workers=1)
    finished = str(sharded.preparer(place).folder)
    storages: dict[str, Storage] = {
        "packed text": CachedTokens(corpus),
        "prepared shards": sharded,
        "finished folder": PreparedTokens(finished),
        "mixture": MixedTokens({"a": sharded, "b": CachedTokens(corpus)}, {"a": 2.0, "b": 1.0}, seed=1),
        "stream": StreamedTokens(corpus, StreamSettings(lanes=4, shuffle_sequences=8), max_fault_share=0.0),
    }

    def of(storage: Storage) -> Make:
        cache = storage.open(place)
        return lambda settings, rank, world: storage.train_loader(place, cache, settings, rank=rank, world_size=world)

    return {kind: chat(kind) if kind.startswith("chat") else of(storages[kind]) for kind in KINDS}


def seen(batch: Batch) -> list[tuple[int, Any]]:
    """(row of the global batch, everything the network would get of it) of each sequence."""
    parts = [batch.ids_BL, batch.attention_mask_BL, batch.maskable_BL]
    rows = batch.rows_B.tolist()
    return [(row, [None if part is None else part[n].tolist() for part in parts]) for n, row in enumerate(rows)]


def global_batches(make: Make, steps: int, *, world: int, workers: int = 0, state: Any = None) -> tuple[list[Any], Any]:
    """What the ranks see together, by row, and the state after it."""
    settings = replace(SETTINGS, num_workers=workers)
    loaders = [make(settings, rank, world) for rank in range(world)]
    result: list[dict[int, Any]] = [{} for _ in range(steps)]
    for loader in loaders:
        if state is not None:
            loader.load_state_dict(state)
        left = steps * (G // world)
        batches: list[Batch] = []
        while len(batches) < left:  # an iteration ends with its epoch
            batches += islice(loader, left - len(batches))
        for number, batch in enumerate(batches):
            result[number // (G // world)].update(seen(batch))
    assert all(sorted(rows) == list(range(G)) for rows in result)
    states = [loader.state_dict() for loader in loaders]
    assert all(one == states[0] for one in states)
    return result, states[0]


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_change_no_global_batch_and_a_run_goes_on_with_any_number(makers: dict[str, Make], kind: str) -> None:
    make = makers[kind]
    alone, _ = global_batches(make, STEPS, world=1)
    assert len({str(rows) for rows in alone}) == STEPS
    for world in (2, 8):
        assert global_batches(make, STEPS, world=world)[0] == alone, world
    for before, after in ((1, 8), (8, 2), (2, 1)):
        first, state = global_batches(make, 4, world=before)
        assert first + global_batches(make, STEPS - 4, world=after, state=state)[0] == alone, (before, after)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [1, 2, pytest.param(8, marks=pytest.mark.slow)])
def test_workers_change_no_global_batch_not_even_across_a_resume(
    makers: dict[str, Make], kind: str, world: int
) -> None:
    if world == 2 and kind not in ("prepared shards", "stream", "chat, packed"):
        pytest.skip("the same reader processes as on one rank")
    make = makers[kind]
    alone, _ = global_batches(make, 4, world=1)
    first, state = global_batches(make, 2, world=world, workers=2)
    assert first == alone[:2]
    assert global_batches(make, 2, world=1, state=state)[0] == alone[2:]
    if world == 1:
        _, state = global_batches(make, 2, world=2)
        assert global_batches(make, 2, world=1, workers=2, state=state)[0] == alone[2:]


def test_the_test_would_notice(makers: dict[str, Make], tmp_path: Path) -> None:
    """Another seed gives other batches: the comparison above is of something that varies."""
    make = makers["prepared shards"]
    other = lambda settings, rank, world: make(replace(settings, seed=4), rank, world)  # noqa: E731
    assert global_batches(make, 2, world=1)[0] != global_batches(other, 2, world=1)[0]
