"""Fine-tuning loss: masks stay out of prompts, every row gets one, padding as asked, two passes."""

from __future__ import annotations

import pytest
import torch

from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.predictor import HardMaskPredictor, SoftMaskPredictor
from sm_diffusion.diffusion.readouts.base import Logits
from sm_diffusion.diffusion.schedule import UniformTimes
from sm_diffusion.diffusion.sft import FirstRowTime, SFTObjective, at_least_one_mask
from sm_diffusion.diffusion.soft_mask import SoftMask
from sm_diffusion.types import Batch, Draws
from tests.helpers.golden import Golden
from tests.helpers.qwen import MASK, tiny_qwen

OBJECTIVE = SFTObjective(times=FirstRowTime(t_min=0.2, t_max=0.8), mask_id=MASK)
PROMPTS = torch.tensor([[3], [5], [12]])
MASKABLE = torch.arange(12) >= PROMPTS


def batch_of(ids_BL: torch.Tensor, maskable_BL: torch.Tensor | None, real_BL: torch.Tensor | None = None) -> Batch:
    return Batch(ids_BL, torch.arange(len(ids_BL)), real_BL, maskable_BL)


def draws_of(batch: Batch, seed: int = 0) -> Draws:
    generator = torch.Generator().manual_seed(seed)
    rows = len(batch.ids_BL)
    return Draws(
        torch.rand(rows, generator=generator), torch.rand(batch.ids_BL.shape, generator=generator), batch.rows_B, rows
    )


def test_at_least_one_mask_in_every_row_that_can_have_one() -> None:
    uniform_BL = torch.rand(3, 12)
    none_BL = torch.zeros(3, 12, dtype=torch.bool)
    forced_BL = at_least_one_mask(none_BL, uniform_BL, MASKABLE)
    assert forced_BL.sum(1).tolist() == [1, 1, 0]
    assert not (forced_BL & ~MASKABLE).any()
    some_BL = none_BL.index_put((torch.tensor(0), torch.tensor(4)), torch.tensor(True))
    kept_BL = at_least_one_mask(some_BL, uniform_BL, MASKABLE)
    assert torch.equal(kept_BL[0], some_BL[0])
    assert torch.equal(kept_BL[1], forced_BL[1])


def test_the_forced_mask_is_uniform_over_the_rows_own_response() -> None:
    uniform_BL = torch.rand(20000, 12)
    maskable_BL = (torch.arange(12) >= 8).expand(20000, -1)
    forced_BL = at_least_one_mask(torch.zeros_like(maskable_BL), uniform_BL, maskable_BL)
    torch.testing.assert_close(forced_BL.float().mean(0)[8:], torch.full((4,), 0.25), atol=0.02, rtol=0)


@pytest.mark.parity
def test_unlike_the_reference_each_row_has_its_own_forced_column() -> None:
    golden = Golden("dream_sft")
    reference_BL = golden["onemask.mask"]
    # The reference: one column, drawn above the first row's prompt, for both rows.
    assert len(set(reference_BL.float().argmax(1).tolist())) == 1
    columns = {
        tuple(at_least_one_mask(torch.zeros(2, 12).bool(), torch.rand(2, 12), MASKABLE[:2]).float().argmax(1).tolist())
        for _ in range(200)
    }
    assert len({first - second for first, second in columns}) > 3
    assert all(first >= 3 and second >= 5 for first, second in columns)


def test_prompt_and_padding_are_never_masked() -> None:
    ids_BL = torch.randint(0, 100, (3, 12))
    real_BL = torch.arange(12) < torch.tensor([[9], [12], [12]])
    for seed in range(20):
        batch = batch_of(ids_BL, MASKABLE, real_BL)
        _, masked_BL = OBJECTIVE.noise(batch, draws_of(batch, seed))
        assert not (masked_BL & ~(MASKABLE & real_BL)).any()
        assert masked_BL.any(1).tolist() == [True, True, False]


def test_one_time_a_batch_or_one_a_row() -> None:
    batch = batch_of(torch.randint(0, 100, (3, 12)), None)
    draws = draws_of(batch)
    shared_B, _ = OBJECTIVE.noise(batch, draws)
    assert torch.equal(shared_B, (0.2 + 0.6 * draws.time_B[:1]).expand(3))
    own_B, _ = SFTObjective(times=UniformTimes(t_min=0.2, t_max=0.8), mask_id=MASK).noise(batch, draws)
    torch.testing.assert_close(own_B, 0.2 + 0.6 * draws.time_B)


def test_loss_is_the_weighted_mean_over_masked_tokens() -> None:
    denoiser = tiny_qwen()
    predictor = HardMaskPredictor(denoiser, mask_id=MASK)
    real_BL = torch.arange(12) < torch.tensor([[9], [12], [10]])
    batch = batch_of(torch.randint(0, 100, (3, 12)), torch.arange(12) >= torch.tensor([[3], [5], [2]]), real_BL)
    objective = SFTObjective(times=UniformTimes(t_min=0.2, t_max=0.8), mask_id=MASK)
    draws = draws_of(batch)
    t_B, masked_BL = objective.noise(batch, draws)
    ids_t_BL = batch.ids_BL.masked_fill(masked_BL, MASK)
    logits_BLV = denoiser(ids_t_BL, Logits(), mixing=mixing.linear, attention_mask_BL=real_BL)
    nll_BL = -logits_BLV.log_softmax(-1).gather(-1, batch.ids_BL[..., None]).squeeze(-1)
    expected = ((nll_BL / t_B[:, None])[masked_BL]).mean()
    out = objective(predictor, batch, draws, feedback=False)
    torch.testing.assert_close(out.loss, expected)
    assert int(out.num_tokens) == int(masked_BL.sum())
    torch.testing.assert_close((out.nll_sum / out.num_tokens).float(), expected.detach())


def test_feedback_trains_the_omegas_and_a_batch_without_response_is_harmless() -> None:
    head = SoftMask(top_k=1, omega_s=0.3, omega_a=3.0, omega_b=-1.0)
    predictor = SoftMaskPredictor(tiny_qwen(), head, mask_id=MASK, mixing=mixing.linear)
    batch = batch_of(torch.randint(0, 100, (3, 12)), MASKABLE)
    out = OBJECTIVE(predictor, batch, draws_of(batch), feedback=True)
    out.loss.backward()
    assert out.num_passes == 2
    assert head.raw_omega_s.grad is not None
    assert head.raw_omega_s.grad.abs() > 0
    empty = batch_of(batch.ids_BL, torch.zeros(3, 12, dtype=torch.bool))
    out = OBJECTIVE(predictor, empty, draws_of(empty), feedback=True)
    assert out.loss.item() == 0


def test_settings() -> None:
    assert OBJECTIVE.masked_share() == pytest.approx(0.5005)
    with pytest.raises(ValueError, match="t_min"):
        SFTObjective(times=FirstRowTime(t_min=0.0, t_max=0.8), mask_id=MASK)
