from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sm_diffusion.data.order import GlobalBatchSampler, accumulation_steps, epoch_permutation, eval_batches
from sm_diffusion.types import UserError
from tests.helpers.data import one_line


def global_batches(num_sequences: int, size: int, micro: int, world: int, steps: int) -> list[dict[int, int]]:
    """{row: index} of the first `steps` optimizer steps, put together from all ranks."""
    samplers = [
        GlobalBatchSampler(
            num_sequences=num_sequences,
            global_batch_sequences=size,
            micro_batch_sequences=micro,
            seed=3,
            rank=rank,
            world_size=world,
        )
        for rank in range(world)
    ]
    streams = []
    for sampler in samplers:
        per_epoch = sampler.micro_batches_per_epoch
        starts = range(0, steps * sampler.accumulation, per_epoch)
        streams.append(itertools.chain.from_iterable(map(sampler.micro_batches, starts)))
    batches = []
    for _ in range(steps):
        rows: dict[int, int] = {}
        for _, stream in itertools.product(range(samplers[0].accumulation), streams):
            batch = next(stream)
            assert len(batch) == micro
            assert not rows.keys() & {row for _, row in batch}
            rows.update({row: index for index, row in batch})
        batches.append(rows)
    return batches


def test_world_size_micro_batch_and_accumulation_change_no_global_batch() -> None:
    n, size, steps = 37, 8, 11  # 4 global batches an epoch: nearly three epochs
    expected = []
    for step in range(steps):
        epoch, batch = divmod(step, n // size)
        order = epoch_permutation(n, seed=3, epoch=epoch)
        expected.append({row: int(order[batch * size + row]) for row in range(size)})
    for world, micro in [(1, 8), (1, 2), (2, 4), (2, 1), (4, 2), (4, 1), (8, 1)]:
        assert global_batches(n, size, micro, world, steps) == expected, (world, micro)


def test_an_epoch_is_one_pass_and_epochs_differ() -> None:
    orders = [epoch_permutation(100, seed=5, epoch=epoch) for epoch in range(3)]
    orders.append(epoch_permutation(100, seed=6, epoch=0))
    for order in orders:
        assert sorted(order.tolist()) == list(range(100))
    assert len({tuple(order.tolist()) for order in orders}) == 4
    # fixed for ever: a change here would change every published run
    assert epoch_permutation(8, seed=1, epoch=2).tolist() == [4, 2, 0, 6, 1, 5, 7, 3]


@given(start=st.integers(0, 40), seed=st.integers(0, 2**63))
def test_starting_later_gives_the_rest_of_the_epoch(start: int, seed: int) -> None:
    sampler = GlobalBatchSampler(
        num_sequences=21, global_batch_sequences=4, micro_batch_sequences=1, seed=seed, rank=1, world_size=2
    )
    per_epoch = sampler.micro_batches_per_epoch
    assert per_epoch == 10
    whole = list(sampler.micro_batches(start // per_epoch * per_epoch))
    assert list(sampler.micro_batches(start)) == whole[start % per_epoch :]


def test_batch_size_not_divisible() -> None:
    for size, choices in ((100, "96 or 128"), (20, "set it to 32")):
        with pytest.raises(UserError) as info:
            accumulation_steps(global_batch_sequences=size, micro_batch_sequences=8, world_size=4)
        message = one_line(info.value)
        assert f"data.global_batch_sequences={size}" in message
        assert "4 processes" in message
        assert "data.micro_batch_sequences=8" in message
        assert choices in message
    assert accumulation_steps(global_batch_sequences=96, micro_batch_sequences=8, world_size=4) == 3


def test_dataset_smaller_than_a_batch() -> None:
    with pytest.raises(UserError) as info:
        GlobalBatchSampler(
            num_sequences=7, global_batch_sequences=8, micro_batch_sequences=8, seed=0, rank=0, world_size=1
        )
    assert "data.global_batch_sequences=8" in one_line(info.value)
    assert "7 training sequences" in str(info.value)


@given(
    n=st.integers(1, 60),
    limit=st.none() | st.integers(1, 70),
    batch=st.integers(1, 9),
    world=st.integers(1, 6),
)
def test_evaluation_shares_everything_evenly(n: int, limit: int | None, batch: int, world: int) -> None:
    count = n if limit is None else min(n, limit)
    shares = []
    for rank in range(world):
        arguments = {"num_sequences": n, "max_sequences": limit, "batch_sequences": batch, "rank": rank}
        if count < world:
            with pytest.raises(UserError, match="cannot be shared"):
                eval_batches(**arguments, world_size=world)
            return
        shares.append(eval_batches(**arguments, world_size=world))
    assert len({len(share) for share in shares}) == 1, "every rank makes as many forward passes"
    flat = [pair for share in shares for part in share for pair in part]
    assert all(index == row for index, row in flat)
    indices = [index for index, _ in flat]
    assert indices == sorted(set(indices))
    assert len(indices) == count
    assert indices == (np.arange(count) * n // count).tolist()
    sizes = {len(part) for share in shares for part in share}
    assert min(sizes) >= 1
    assert max(sizes) <= (batch if batch > 1 or count % world == 0 else 2)
