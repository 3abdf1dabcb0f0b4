"""A 3-token vocabulary and 2 positions, every case enumerated: the bound and the losses are what they claim to be."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from sm_diffusion.denoisers.dit.model import DiT, DiTShape
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.objective import MDLMObjective, Noised, denoising_loss
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.readouts.base import Logits
from sm_diffusion.diffusion.schedule import Cosine, Linear, LogLinear, NoiseSchedule, StratifiedTimes
from sm_diffusion.diffusion.soft_mask import SoftMask, remember
from sm_diffusion.types import Batch, Draws

CLEAN, MASK, LENGTH = 3, 3, 2
ALL_TEXTS = torch.tensor(list(itertools.product(range(CLEAN), repeat=LENGTH)))


def make_predictor(soft: bool) -> Predictor:
    torch.manual_seed(3)
    shape = DiTShape(vocab_size=CLEAN + 1, width=8, num_blocks=1, num_heads=2, cond_width=4)
    model = DiT(shape, parameterization=Subs(MASK))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    if not soft:
        return HardMaskPredictor(model, mask_id=MASK)
    soft_mask = SoftMask(top_k=2, omega_s=0.8, omega_a=2.0, omega_b=-0.5)
    return SoftMaskPredictor(model, soft_mask, mask_id=MASK, mixing=mixing.linear)


def table_of_log_probs(predictor: Predictor, *, feedback: bool) -> dict[tuple[int, ...], Tensor]:
    """log p(x0_l = v | x_t) for every x_t, by full logits and no chunking."""
    table = {}
    with torch.no_grad():
        for text in itertools.product(range(CLEAN + 1), repeat=LENGTH):
            ids_BL = torch.tensor([text])
            logits = predictor(ids_BL, None, Logits())
            if feedback:
                memory = remember(logits, 2)
                logits = predictor(ids_BL, memory, Logits())
            table[text] = logits[0, :, :CLEAN].double().log_softmax(-1)
    return table


def expected_loss_at(table: dict[tuple[int, ...], Tensor], text: list[int], schedule: NoiseSchedule, t: float) -> float:
    """E over all masks of w(t) sum_masked -log p(x_l | x_t), at one time."""
    time = torch.tensor(t, dtype=torch.float64)
    p_mask, weight = float(schedule.mask_probability(time)), float(schedule.loss_weight(time))
    total = 0.0
    for masked in itertools.product([False, True], repeat=LENGTH):
        probability = math.prod(p_mask if m else 1 - p_mask for m in masked)
        noisy = tuple(MASK if m else v for v, m in zip(text, masked, strict=True))
        nll = sum(-float(table[noisy][i, text[i]]) for i, m in enumerate(masked) if m)
        total += probability * weight * nll
    return total


@pytest.mark.parametrize("schedule", [LogLinear(eps=1e-3), Linear(), Cosine(eps=1e-3)], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("soft", [False, True])
def test_loss_equals_enumeration(soft: bool, schedule: NoiseSchedule) -> None:
    predictor = make_predictor(soft)
    table = table_of_log_probs(predictor, feedback=soft)
    t = 0.37
    p_mask = float(schedule.mask_probability(torch.tensor(t, dtype=torch.float64)))
    objective = MDLMObjective(schedule=schedule, times=StratifiedTimes(t_min=0.0), mask_id=MASK)
    for text in ALL_TEXTS[::4]:
        exact = expected_loss_at(table, text.tolist(), schedule, t)
        # One batch that holds every mask once, each weighted by its probability.
        total = 0.0
        for masked in itertools.product([False, True], repeat=LENGTH):
            uniform_BL = torch.tensor([[0.0 if m else 0.999999 for m in masked]], dtype=torch.float64)
            draws = Draws(torch.tensor([t], dtype=torch.float64), uniform_BL, torch.tensor([0]), 1)
            out = objective(predictor, Batch(text[None], torch.tensor([0])), draws, feedback=soft)
            assert int(out.num_tokens) == LENGTH
            assert float(out.loss.detach()) == pytest.approx(float(out.nll_sum) / LENGTH, rel=1e-5)
            total += math.prod(p_mask if m else 1 - p_mask for m in masked) * float(out.nll_sum)
        assert total == pytest.approx(exact, rel=2e-5, abs=1e-6)


def test_elbo_bounds_the_likelihood_and_equals_the_any_order_bound() -> None:
    """With w(t) = -alpha'/(1 - alpha) the bound integrates to the mean over unmasking orders, for every schedule."""
    table = table_of_log_probs(make_predictor(False), feedback=False)
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)[1:]
    midpoints = (grid - 0.5 / 2000).tolist()
    for text_L in ALL_TEXTS:
        text = text_L.tolist()
        any_order = 0.0
        for order in itertools.permutations(range(LENGTH)):
            state = [MASK] * LENGTH
            for position in order:
                any_order -= float(table[tuple(state)][position, text[position]]) / math.factorial(LENGTH)
                state[position] = text[position]
        bound = sum(expected_loss_at(table, text, Linear(), t) for t in midpoints) / 2000
        assert bound == pytest.approx(any_order, rel=1e-3, abs=1e-6)
    # The model's likelihood under a random order sums to one, and the bound lies above -log of it.
    marginal = 0.0
    for text_L in ALL_TEXTS:
        text = text_L.tolist()
        likelihood = 0.0
        bound = 0.0
        for order in itertools.permutations(range(LENGTH)):
            state, log_p = [MASK] * LENGTH, 0.0
            for position in order:
                log_p += float(table[tuple(state)][position, text[position]])
                state[position] = text[position]
            likelihood += math.exp(log_p) / math.factorial(LENGTH)
            bound -= log_p / math.factorial(LENGTH)
        assert bound >= -math.log(likelihood) - 1e-9
        marginal += likelihood
    assert marginal == pytest.approx(1.0, abs=1e-9)


def test_a_uniform_predictor_scores_log_v() -> None:
    shape = DiTShape(vocab_size=8, width=8, num_blocks=1, num_heads=2, cond_width=4)
    predictor = HardMaskPredictor(DiT(shape, parameterization=Subs(7)), mask_id=7)  # zero head: uniform over 7
    objective = MDLMObjective(schedule=LogLinear(eps=1e-3), times=StratifiedTimes(t_min=1e-3), mask_id=7)
    num_rows, length = 4096, 8
    generator = torch.Generator().manual_seed(0)
    draws = Draws(
        torch.rand(num_rows, generator=generator),
        torch.rand(num_rows, length, generator=generator),
        torch.arange(num_rows),
        num_rows,
    )
    batch = Batch(torch.randint(0, 7, (num_rows, length)), torch.arange(num_rows))
    with torch.no_grad():
        out = objective(predictor, batch, draws, feedback=False)
    assert float(out.loss) == pytest.approx(math.log(7), rel=0.02)


def test_only_maskable_real_positions_are_masked_and_counted() -> None:
    predictor = make_predictor(False)
    objective = MDLMObjective(schedule=LogLinear(), times=StratifiedTimes(), mask_id=MASK)
    ids_BL = torch.tensor([[0, 1], [2, 0]])
    batch = Batch(
        ids_BL,
        torch.arange(2),
        attention_mask_BL=torch.tensor([[True, True], [True, False]]),
        maskable_BL=torch.tensor([[False, True], [True, True]]),
    )
    draws = Draws(torch.full((2,), 0.9, dtype=torch.float64), torch.zeros(2, 2), torch.arange(2), 2)
    out = objective(predictor, batch, draws, feedback=False)
    assert int(out.num_tokens) == 3
    noised = Noised(
        torch.tensor([[0, MASK], [MASK, 0]]),
        ids_BL,
        torch.tensor([[False, True], [True, False]]),
        batch.attention_mask_BL,
    )
    t_B = objective.times(draws)
    again = denoising_loss(
        predictor,
        noised,
        weight_B=objective.schedule.loss_weight(t_B),
        sigma_B=None,
        num_tokens=torch.tensor(3),
        feedback=False,
    )
    assert float(out.loss.detach()) == pytest.approx(float(again.loss.detach()))
