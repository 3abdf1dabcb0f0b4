from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from sm_diffusion.data.corpora.base import TextFiles
from sm_diffusion.data.datamodule import TokenDataModule
from sm_diffusion.data.loader import LoaderSettings, TrainLoader
from sm_diffusion.data.order import GlobalBatchSampler
from sm_diffusion.data.stores.arrow_cache import prepare_tokens
from sm_diffusion.data.tokenizers.base import ByteTokenizer
from sm_diffusion.types import Batch, UserError
from tests.helpers.data import BYTES, LOADER, one_line, tiny_datamodule, tiny_source

Seen = list[tuple[list[list[int]], list[int]]]
EPOCHS = 3


@pytest.fixture(autouse=True)
def _quiet() -> None:
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch.accelerators.cuda"):
        logging.getLogger(name).setLevel(logging.ERROR)


def plain(batch: Batch) -> tuple[list[list[int]], list[int]]:
    assert batch.attention_mask_BL is None
    assert batch.maskable_BL is None
    assert batch.ids_BL.dtype == batch.rows_B.dtype == torch.int64
    return batch.ids_BL.tolist(), batch.rows_B.tolist()


class Recorder(pl.LightningModule):
    """Notes the batches that training and validation are given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: Seen = []
        self.validated: Seen = []

    def training_step(self, batch: Batch, _: int) -> Tensor:
        self.seen.append(plain(batch))
        return self.weight * batch.ids_BL.float().mean()

    def validation_step(self, batch: Batch, _: int) -> None:
        self.validated.append(plain(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(folder: Path, *, ckpt_path: Path | None = None, num_workers: int = 0, save: bool = False) -> Recorder:
    """Trains three epochs with two micro-steps an optimizer step, optionally with a checkpoint after every step."""
    module = Recorder()
    callbacks = []
    if save:
        callbacks.append(
            ModelCheckpoint(dirpath=folder / "checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1)
        )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        accumulate_grad_batches=2,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=save,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    data = tiny_datamodule(folder / "cache", num_workers=num_workers)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recorder]:
    """A run that never stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder, save=True)


def test_each_epoch_is_another_pass(whole: tuple[Path, Recorder]) -> None:
    folder, module = whole
    data = tiny_datamodule(folder / "cache")
    data.prepare()
    table = prepare_tokens(source=tiny_source(), tokenizer=data.tokenizer, length=8, cache_dir=folder / "cache").train
    rows = {tuple(row) for row in table.rows(range(len(table))).tolist()}
    per_epoch = len(table) // 4 * 2
    assert per_epoch >= 10
    assert len(module.seen) == EPOCHS * per_epoch
    for epoch in range(EPOCHS):
        part = module.seen[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert [numbers for _, numbers in part] == [[0, 1], [2, 3]] * (per_epoch // 2)
        assert {tuple(row) for ids, _ in part for row in ids} <= rows
    orders = [str(module.seen[epoch * per_epoch : (epoch + 1) * per_epoch]) for epoch in range(EPOCHS)]
    assert len(set(orders)) == EPOCHS


def test_resume_from_every_step_equals_the_run_that_never_stopped(whole: tuple[Path, Recorder]) -> None:
    folder, module = whole
    steps = len(module.seen) // 2
    per_epoch = steps // EPOCHS
    for step in (1, per_epoch - 1, per_epoch, per_epoch + 1, 2 * per_epoch, 3 * per_epoch - 1):
        resumed = fit(folder, ckpt_path=folder / "checkpoints" / f"step={step}.ckpt")
        assert resumed.seen == module.seen[2 * step :], step
        assert torch.equal(resumed.weight, module.weight), step


@pytest.mark.parametrize("where", ["middle", "border"])
def test_workers_change_nothing_even_across_a_resume(whole: tuple[Path, Recorder], tmp_path: Path, where: str) -> None:
    folder, module = whole
    per_epoch = len(module.seen) // 2 // EPOCHS
    step = per_epoch + 2 if where == "middle" else 2 * per_epoch
    resumed = fit(folder, ckpt_path=folder / "checkpoints" / f"step={step}.ckpt", num_workers=2)
    assert resumed.seen == module.seen[2 * step :]
    if where == "middle":
        with_workers = fit(tmp_path, num_workers=2, save=True)
        assert with_workers.seen == module.seen
        back = fit(tmp_path, ckpt_path=tmp_path / "checkpoints" / f"step={step}.ckpt", num_workers=2)
        assert back.seen == module.seen[2 * step :]
        back = fit(tmp_path, ckpt_path=tmp_path / "checkpoints" / f"step={step}.ckpt")
        assert back.seen == module.seen[2 * step :]


def train_loader(cache_dir: Path, *, rank: int = 0, world_size: int = 1, workers: int = 0, **order: int) -> TrainLoader:
    cache = prepare_tokens(source=tiny_source(), tokenizer=ByteTokenizer(), length=8, cache_dir=cache_dir)
    settings = {"global_batch_sequences": 8, "micro_batch_sequences": 2, "seed": 3, **order}
    sampler = GlobalBatchSampler(num_sequences=len(cache.train), rank=rank, world_size=world_size, **settings)
    return TrainLoader(table=cache.train, sampler=sampler, num_workers=workers)


def test_position_counts_what_was_handed_out(tmp_path: Path) -> None:
    endless = train_loader(tmp_path)
    expected = [plain(batch) for _ in range(2) for batch in endless]
    loader = train_loader(tmp_path, workers=2)
    iter(loader)  # thrown away unused
    first = iter(loader)
    seen = [plain(next(first)) for _ in range(3)]  # workers have read ahead of this
    state = loader.state_dict()
    assert (state["global_batches"], state["micro_steps"]) == (0, 3)
    seen += [plain(batch) for batch in loader]  # goes on to the end of the epoch
    assert len(seen) == len(loader)
    seen += [plain(batch) for batch in loader]
    assert seen == expected
    loader.load_state_dict(state)
    assert [plain(batch) for batch in loader] == expected[3 : len(loader)]


def test_two_iterations_at_once_are_noticed(tmp_path: Path) -> None:
    loader = train_loader(tmp_path)
    first, second = iter(loader), iter(loader)
    next(first)
    next(second)
    with pytest.raises(AssertionError, match="two iterations"):
        next(first)


def test_resume_with_another_world_size(tmp_path: Path) -> None:
    def global_batches(loaders: list[TrainLoader]) -> Iterator[dict[int, list[int]]]:
        streams = [iter(loader) for loader in loaders]
        for _ in range(len(loaders[0]) * len(loaders) // 4):
            batches = [plain(next(stream)) for _ in range(4 // len(loaders)) for stream in streams]
            yield {row: ids for many, rows in batches for ids, row in zip(many, rows, strict=True)}

    expected = list(global_batches([train_loader(tmp_path)]))
    two = [train_loader(tmp_path, rank=rank, world_size=2) for rank in range(2)]
    stream = global_batches(two)
    seen = [next(stream) for _ in range(3)]
    states = [loader.state_dict() for loader in two]
    assert states[0] == states[1]
    four = [train_loader(tmp_path, rank=rank, world_size=4) for rank in range(4)]
    for loader in four:
        loader.load_state_dict(states[0])
    stream = global_batches(four)
    seen += [next(stream) for _ in range(len(expected) - 3)]
    assert seen == expected


def test_states_that_do_not_fit(tmp_path: Path) -> None:
    loader = train_loader(tmp_path)
    next(iter(loader))
    state = loader.state_dict()
    with pytest.raises(UserError) as info:
        train_loader(tmp_path, world_size=2).load_state_dict(state)
    assert "1 micro-steps into a global batch of 4, which now has 2" in one_line(info.value)
    for change, word in (({"seed": 4}, "data.seed"), ({"global_batch_sequences": 4}, "data.global_batch_sequences")):
        with pytest.raises(UserError) as info:
            train_loader(tmp_path, **change).load_state_dict(state)
        assert word in one_line(info.value)
        assert "init_from" in str(info.value)
    with pytest.raises(UserError, match="the training text changed"):
        loader.load_state_dict({**state, "num_sequences": 5})


def test_loaders_leave_the_global_random_stream_alone(tmp_path: Path) -> None:
    data = tiny_datamodule(tmp_path)
    data.prepare()
    before = torch.get_rng_state()
    assert len([*data.train_dataloader(), *data.val_dataloader()]) > 2
    assert torch.equal(torch.get_rng_state(), before)


def test_validation_sees_everything_once(whole: tuple[Path, Recorder]) -> None:
    folder, module = whole
    data = tiny_datamodule(folder / "cache")
    data.prepare()
    batches = [plain(batch) for batch in data.val_dataloader()]
    count = data.meta.splits["validation"].sequences
    assert [row for _, rows in batches for row in rows] == list(range(count))
    assert len(batches) == math.ceil(count / 3)
    assert module.validated[-len(batches) :] == batches
    limited = tiny_datamodule(folder / "cache", max_validation_sequences=4, num_workers=1)
    limited.prepare()
    some = [row for batch in limited.val_dataloader() for row in batch.rows_B.tolist()]
    assert some == [index * count // 4 for index in range(4)]


def test_datamodule_surface(tmp_path: Path) -> None:
    data = tiny_datamodule(tmp_path)
    with pytest.raises(AssertionError, match="prepare"):
        data.train_dataloader()
    data.prepare()
    tokenizer, meta = data.tokenizer, data.meta
    data.prepare_data()
    data.setup("fit")
    assert data.tokenizer is tokenizer
    assert data.meta is meta
    assert data.vocab_size == 258
    counts = meta.splits["validation"]
    assert data.bytes_per_token("validation") == counts.text_bytes / counts.tokens
    assert 0.9 < data.bytes_per_token("validation") < 1
    batch = next(iter(data.val_dataloader()))
    assert data.decode(batch.ids_BL[0].tolist()) == "held out"
    small = tiny_datamodule(tmp_path, max_train_sequences=9)
    small.prepare()
    assert len(small.train_dataloader()) == 4


def test_text_files_end_to_end(tmp_path: Path) -> None:
    for index in range(30):
        (tmp_path / f"{index:02}.txt").write_text(f"file number {index}")
    source = TextFiles(paths=str(tmp_path), text_field="text", split_blank_lines=False, validation_fraction=0.2)
    data = TokenDataModule(source=source, tokenizer=BYTES, length=8, loader=LOADER, cache_dir=tmp_path / "cache")
    data.prepare()
    assert sum(split.documents for split in data.meta.splits.values()) == 30


def test_bad_settings(tmp_path: Path) -> None:
    for name, value in (("micro_batch_sequences", 0), ("seed", -1), ("max_validation_sequences", 0)):
        numbers = {"global_batch_sequences": 4, "micro_batch_sequences": 2, "eval_batch_sequences": 3}
        with pytest.raises(UserError) as info:
            LoaderSettings(**{**numbers, "num_workers": 0, "seed": 0, name: value})
        assert f"data.{name}={value}" in one_line(info.value)
    data = tiny_datamodule(tmp_path, global_batch_sequences=5)
    data.prepare()
    with pytest.raises(UserError, match=r"data.global_batch_sequences=5.*4 or 6"):
        data.train_dataloader()
