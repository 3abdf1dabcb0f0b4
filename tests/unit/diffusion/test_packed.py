"""Packed fine-tuning: a sample in a shared row gives the logits, the noise and the loss that it gives alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sm_diffusion.data.chat.cache import as_rows
from sm_diffusion.data.chat.collate import ChatSample
from sm_diffusion.data.chat.rows import PackedRows, PaddedRows, longest_row, places
from sm_diffusion.denoisers.dit.model import DiT, DiTShape
from sm_diffusion.denoisers.pretrained.hf import HFDenoiser
from sm_diffusion.diffusion import mixing, packed
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.readouts.base import Logits
from sm_diffusion.diffusion.schedule import UniformTimes
from sm_diffusion.diffusion.sft import FirstRowTime, SFTObjective
from sm_diffusion.diffusion.soft_mask import FullVocabularySoftMask, SoftMask
from sm_diffusion.training import rng
from sm_diffusion.types import Batch, Draws, UserError
from tests.helpers.qwen import MASK, PAD, VOCAB, tiny_llama, tiny_qwen

PER_ROW = SFTObjective(times=UniformTimes(t_min=0.2, t_max=0.8), mask_id=MASK)
NETWORKS = {"qwen2": tiny_qwen, "llama": tiny_llama}
STEP, SEED, ROW_TOKENS = 3, 11, 96


def samples(num: int = 7) -> list[ChatSample]:
    generator = torch.Generator().manual_seed(4)
    lengths = torch.randint(6, 30, (num,), generator=generator).tolist()
    return [ChatSample(torch.randint(0, PAD, (n,), generator=generator).tolist(), 2 + n // 4) for n in lengths]


def table_rows(chosen: list[int]) -> Batch:
    table = as_rows(samples())
    return Batch(torch.from_numpy(table.rows(chosen)), torch.tensor(chosen))


def packed_rows(pads_are_maskable: bool = True) -> PackedRows:
    return PackedRows(pad_id=PAD, pads_are_maskable=pads_are_maskable, seed=5, row_tokens=ROW_TOKENS)


def padded_rows(pads_are_maskable: bool = True) -> PaddedRows:
    return PaddedRows(pad_id=PAD, pads_are_maskable=pads_are_maskable, seed=5)


def draws_of(batch: Batch) -> Draws:
    rows, width = batch.rows_B.tolist(), batch.ids_BL.shape[1]
    return rng.training_draws(rows, width, num_rows=8, seed=SEED, step=STEP, row_width=longest_row(30))


@pytest.mark.parametrize("name", NETWORKS)
def test_logits_of_a_packed_sample_are_those_of_the_sample_alone(name: str) -> None:
    denoiser = NETWORKS[name]()
    batch = packed_rows()(table_rows(list(range(7))), STEP)
    assert batch.places_PQ is not None
    assert len(batch.places_PQ) < 7, "rows are shared"
    length = batch.ids_BL.shape[1]
    segments_PQ = packed.segments(batch.places_PQ, length)
    together = network(denoiser, packed.lay(batch.ids_BL, batch.places_PQ), segments_PQ)
    assert torch.isfinite(together).all(), "padding included"
    for number in range(7):
        alone_batch = padded_rows()(table_rows([number]), STEP)
        alone = network(denoiser, alone_batch.ids_BL, None)[0]
        torch.testing.assert_close(together[segments_PQ == number + 1], alone, atol=2e-5, rtol=0)


def network(denoiser: HFDenoiser, ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
    with torch.no_grad():
        return denoiser(ids_BL, Logits(), mixing=mixing.linear, attention_mask_BL=mask_BL)


def test_no_token_sees_another_sample() -> None:
    denoiser = tiny_qwen()
    places_PQ = places([10, 7, 5], length=10, row_tokens=22)
    assert places_PQ.shape == (1, 24), "one row, padded to a multiple of 8"
    segments_PQ = packed.segments(places_PQ, 10)
    ids_PQ = torch.randint(0, PAD, places_PQ.shape)
    before = network(denoiser, ids_PQ, segments_PQ)
    for number in (1, 2, 3):
        changed_PQ = torch.where(segments_PQ == number, (ids_PQ + 1) % PAD, ids_PQ)
        moved_PQ = (network(denoiser, changed_PQ, segments_PQ) != before).any(-1)
        assert moved_PQ[segments_PQ == number].all()
        assert not moved_PQ[segments_PQ != number].any()


def predictors() -> dict[str, Predictor]:
    omegas = {"omega_s": 0.8, "omega_a": 1.0, "omega_b": -2.0}
    masks = {
        "soft, top-3": SoftMask(top_k=3, **omegas),
        "soft, full vocabulary": FullVocabularySoftMask(temperature=1.0, **omegas),
    }
    soft: dict[str, Predictor] = {
        name: SoftMaskPredictor(tiny_qwen(), mask, mask_id=MASK, mixing=mixing.linear) for name, mask in masks.items()
    }
    return {"hard": HardMaskPredictor(tiny_qwen(), mask_id=MASK), **soft}


@pytest.mark.parametrize("pads_are_maskable", [True, False])
@pytest.mark.parametrize("name", ["hard", "soft, top-3", "soft, full vocabulary"])
def test_loss_and_gradients_of_packed_samples_are_those_of_the_samples_alone(
    name: str, pads_are_maskable: bool
) -> None:
    """sum over the samples of (loss x masked tokens) alone == packed, feedback on: noise, passes and targets agree."""
    predictor = predictors()[name]
    together = packed_rows(pads_are_maskable)(table_rows(list(range(7))), STEP)
    out = PER_ROW(predictor, together, draws_of(together), feedback=True)
    (out.loss * out.num_tokens).backward()
    gradients = grads(predictor)
    predictor.zero_grad()
    total, tokens = torch.tensor(0.0), 0
    for number in range(7):
        alone = padded_rows(pads_are_maskable)(table_rows([number]), STEP)
        part = PER_ROW(predictor, alone, draws_of(alone), feedback=True)
        assert part.num_passes == out.num_passes == (1 if name == "hard" else 2)
        total, tokens = total + part.loss * part.num_tokens, tokens + int(part.num_tokens)
    total.backward()
    assert tokens == int(out.num_tokens)
    torch.testing.assert_close(out.loss * out.num_tokens, total, rtol=1e-5, atol=0)
    for key, gradient in grads(predictor).items():
        torch.testing.assert_close(gradients[key], gradient, rtol=1e-3, atol=1e-4, msg=key)


def grads(predictor: Predictor) -> dict[str, Tensor]:
    return {key: value.grad.clone() for key, value in predictor.named_parameters() if value.grad is not None}


def test_one_time_a_micro_batch_as_published_also_packed() -> None:
    objective = SFTObjective(times=FirstRowTime(t_min=0.2, t_max=0.8), mask_id=MASK)
    batch = packed_rows()(table_rows([3, 4, 5]), STEP)
    t_B, masked_BL = objective.noise(batch, draws_of(batch))
    assert t_B.unique().numel() == 1
    assert not (masked_BL & ~batch.maskable_BL).any()


def test_a_rows_noise_does_not_depend_on_its_batch() -> None:
    """Padded to other lengths, in other company: the same time and the same masks on the row's own tokens."""
    alone = [padded_rows()(table_rows([number]), STEP) for number in range(7)]
    company = [padded_rows()(table_rows(chosen), STEP) for chosen in ([0, 1, 2, 3, 4, 5, 6], [6, 2], [5, 0, 3])]
    assert len({batch.ids_BL.shape[1] for batch in (*alone, *company)}) > 3
    seen: dict[int, Any] = {}
    for batch in (*alone, *company, packed_rows()(table_rows([1, 6, 4]), STEP)):
        draws = draws_of(batch)
        for place, row in enumerate(batch.rows_B.tolist()):
            own = draws.mask_BL[place, : len(samples()[row].ids)]
            time, expected = seen.setdefault(row, (draws.time_B[place], own))
            assert torch.equal(draws.time_B[place], time)
            assert torch.equal(own, expected)


def test_rows_of_different_batches_share_no_random_number() -> None:
    """Without a fixed width, row 3 of a batch of 40 columns would read where row 2 of a batch of 60 reads."""
    wide = rng.uniforms([2], 60, seed=1, step=1, tag="mask", row_width=64)
    narrow = rng.uniforms([3], 40, seed=1, step=1, tag="mask", row_width=64)
    assert not set(wide[0].tolist()) & set(narrow[0].tolist())
    clash = [rng.uniforms([row], width, seed=1, step=1, tag="mask")[0].tolist() for row, width in ((2, 60), (3, 40))]
    assert set(clash[0]) & set(clash[1])


def test_positions_of_packed_rows() -> None:
    places_PQ = torch.tensor([[4, 5, 6, 0, 1, -1], [8, 9, 10, 11, -1, -1]])
    segments_PQ = packed.segments(places_PQ, 4)
    assert segments_PQ.tolist() == [[2, 2, 2, 1, 1, 0], [3, 3, 3, 3, 0, 0]]
    assert packed.segment_positions(segments_PQ).tolist() == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 1]]
    assert packed.packed_positions(torch.tensor([1, 4, 10, 11]), places_PQ, 12).tolist() == [4, 0, 8, 9]


def test_a_network_that_cannot_take_packed_rows_says_so() -> None:
    shape = DiTShape(vocab_size=VOCAB, width=16, num_blocks=1, num_heads=2, cond_width=8)
    dit = DiT(shape, parameterization=Subs(MASK))
    ids_BL = torch.ones(1, 4, dtype=torch.int64)
    with pytest.raises(UserError, match=r"takes no packed rows: set data\.packing=none"):
        dit(ids_BL, Logits(), mixing=mixing.linear, attention_mask_BL=ids_BL)
