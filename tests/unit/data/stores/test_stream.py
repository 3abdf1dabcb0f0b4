"""Streaming: the same global batches on any number of ranks and workers, each window once a pass, exact resume."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from sm_diffusion.data.corpora.file_corpus import FileCorpus
from sm_diffusion.data.loader import LoaderSettings
from sm_diffusion.data.stores.base import StreamedTokens
from sm_diffusion.data.stores.shard_writer import Recipe, SliceTokens
from sm_diffusion.data.stores.stream import StreamLoader, StreamPlan, StreamSettings, deal
from sm_diffusion.data.tokenizers.base import ByteTokenizer
from sm_diffusion.types import UserError
from tests.helpers.data import file_corpus, write_openwebtext

LOADER = LoaderSettings(
    global_batch_sequences=8, micro_batch_sequences=4, eval_batch_sequences=4, num_workers=0, seed=3
)
LANES = 4
STEPS = 130  # global batches: every lane goes through its slices more than once


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> FileCorpus:
    folder = write_openwebtext(tmp_path_factory.mktemp("stream") / "owt", files=2, documents=20)
    return file_corpus(folder, slice_rows=5)


def loader(
    corpus: FileCorpus, counts: Path, *, rank: int = 0, world: int = 1, workers: int = 0, micro: int = 4
) -> StreamLoader:
    plan = StreamPlan(
        recipe=Recipe(source=corpus, tokenizer=ByteTokenizer(), length=16),
        settings=StreamSettings(lanes=LANES, shuffle_sequences=10),
        loader=replace(LOADER, micro_batch_sequences=micro),
        rank=rank,
        world_size=world,
        counts_path=counts / "counts.jsonl",
    )
    return StreamLoader(plan, num_workers=workers)


def global_batches(loaders: list[StreamLoader], steps: int, per_step: int) -> list[list[list[int]]]:
    """What the ranks see together, by row of the global batch."""
    streams = [iter(one) for one in loaders]
    result = []
    for _ in range(steps):
        rows: dict[int, list[int]] = {}
        for stream in streams:
            for batch in islice(stream, per_step):
                rows |= dict(zip(batch.rows_B.tolist(), batch.ids_BL.tolist(), strict=True))
        assert sorted(rows) == list(range(8))
        result.append([rows[row] for row in range(8)])
    return result


@pytest.fixture(scope="module")
def alone(corpus: FileCorpus, tmp_path_factory: pytest.TempPathFactory) -> list[list[list[int]]]:
    return global_batches([loader(corpus, tmp_path_factory.mktemp("alone"))], STEPS, 2)


@pytest.mark.parametrize(("world", "micro"), [(2, 4), (2, 1), (8, 1), (4, 2), (1, 8)])
def test_ranks_change_no_global_batch(
    corpus: FileCorpus, alone: list[list[list[int]]], tmp_path: Path, world: int, micro: int
) -> None:
    loaders = [loader(corpus, tmp_path, rank=rank, world=world, micro=micro) for rank in range(world)]
    assert global_batches(loaders, STEPS, 8 // (world * micro)) == alone


@pytest.mark.distributed
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_no_global_batch(
    corpus: FileCorpus, alone: list[list[list[int]]], tmp_path: Path, workers: int
) -> None:
    assert global_batches([loader(corpus, tmp_path, workers=workers)], 6, 2) == alone[:6]


def test_no_window_twice_before_its_lane_showed_all(corpus: FileCorpus, alone: list[list[list[int]]]) -> None:
    recipe = Recipe(source=corpus, tokenizer=ByteTokenizer(), length=16)
    slices = corpus.slices["train"]
    dealt = deal(slices, [1.0 * part.stop - part.start for part in slices], lanes=LANES, seed=LOADER.seed)
    assert sorted(number for numbers in dealt for number in numbers) == list(range(len(slices)))
    for lane, numbers in enumerate(dealt):
        held = [
            tuple(row)
            for number in numbers
            for rows in SliceTokens(recipe, "train", slices[number]).windows()
            for row in rows.tolist()
        ]
        shown = [tuple(row) for batch in alone for row in batch[lane * 2 : lane * 2 + 2]]
        assert len(held) < len(shown), "more than one pass"
        for start in range(0, len(shown) - len(held) + 1, len(held)):
            assert sorted(shown[start : start + len(held)]) == sorted(held)
        assert shown[: len(held)] != held, "shuffled"
        assert shown[: len(held)] != shown[len(held) : 2 * len(held)], "otherwise in the next pass"


@pytest.mark.parametrize("known", [True, False], ids=["slices counted", "nothing known"])
def test_exact_resume_anywhere_also_on_other_ranks(
    corpus: FileCorpus, alone: list[list[list[int]]], tmp_path: Path, known: bool
) -> None:
    counts = tmp_path / "counts"
    first = loader(corpus, counts)
    stream = iter(first)
    for step in (0, 1, 7, 19, 31):
        while first.state_dict()["global_batches"] < step:
            next(stream)
        state = first.state_dict()
        assert (state["global_batches"], state["micro_steps"]) == (step, 0)
        where = counts if known else tmp_path / f"nothing{step}"
        loaders = [loader(corpus, where, rank=rank, world=2, micro=2) for rank in range(2)]
        for one in loaders:
            one.load_state_dict(state)
        assert global_batches(loaders, 5, 2) == alone[step : step + 5]
    next(stream)  # in the middle of a global batch
    again = loader(corpus, counts)
    again.load_state_dict(first.state_dict())
    for _ in range(3):
        ours, theirs = next(stream), next(iter(again))
        assert torch.equal(ours.ids_BL, theirs.ids_BL)
        assert torch.equal(ours.rows_B, theirs.rows_B)


def test_counted_slices_are_not_read_again(corpus: FileCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = loader(corpus, tmp_path)
    stream = iter(one)
    for _ in range(2 * STEPS):
        next(stream)
    read = []
    whole = SliceTokens.windows

    def noted(self: SliceTokens) -> object:
        read.append(self._part)
        return whole(self)

    monkeypatch.setattr(SliceTokens, "windows", noted)
    again = loader(corpus, tmp_path)
    again.load_state_dict(one.state_dict())
    next(iter(again))
    assert len(read) <= 2 * LANES, "the slices at the border of the block, not the passes before"


def test_other_settings_are_refused(corpus: FileCorpus, tmp_path: Path) -> None:
    one = loader(corpus, tmp_path)
    next(iter(one))
    state = one.state_dict()
    with pytest.raises(UserError, match="seed was 4 and is 3"):
        loader(corpus, tmp_path).load_state_dict({**state, "seed": 4})
    with pytest.raises(UserError, match="1 micro-steps into a global batch of 2, which now has 1"):
        loader(corpus, tmp_path, micro=8).load_state_dict(state)
    recipe = Recipe(source=corpus, tokenizer=ByteTokenizer(), length=16)
    more = {"recipe": recipe, "loader": LOADER, "rank": 0, "world_size": 1, "counts_path": tmp_path / "c"}
    with pytest.raises(UserError, match=r"data.stream.lanes=3: must divide data.global_batch_sequences=8: set it to 2"):
        StreamPlan(settings=StreamSettings(lanes=3), **more)
    with pytest.raises(UserError, match=r"data.stream.lanes=8: the corpus has only 6 slices"):
        StreamPlan(settings=StreamSettings(lanes=8), **more)
    with pytest.raises(UserError, match=r"set data.deduplicate=false"):
        StreamedTokens(
            FileCorpus(
                name="x",
                location=corpus._location,
                files=corpus._files,
                record_filter=corpus.record_filter,
                deduplicate=True,
            ),
            StreamSettings(),
            max_fault_share=0.1,
        )


def test_files_at_an_address(tmp_path: Path) -> None:
    """What is read through fsspec, as the hub's files are, equals what is read from the disk."""
    import fsspec

    from sm_diffusion.data.corpora.records import Root, plan_slices, read_slice

    write_openwebtext(tmp_path, files=1)
    memory = fsspec.filesystem("memory")
    name = "plain_text/train-00000-of-00001.parquet"
    memory.pipe("/owt/" + name, (tmp_path / name).read_bytes())
    for root in (Root("memory://owt"), Root(str(tmp_path))):
        slices = plan_slices(root, name, size=0, rows=10, num_bytes=1)
        assert [(part.start, part.stop) for part in slices] == [(0, 10), (10, 20)]
        texts = [record.fields["text"] for part in slices for record in read_slice(root, part, fields=["text"])]
        assert len(texts) == len(set(texts)) == 20
        assert np.array_equal(texts[:1], [texts[0]])
