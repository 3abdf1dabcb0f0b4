"""The likelihood of a continuation: all masks enumerated on a tiny vocabulary, with and without soft-masking."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from sm_diffusion.denoisers.dit.model import DiT, DiTShape
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.readouts.base import Logits
from sm_diffusion.diffusion.soft_mask import SoftMask, remember
from sm_diffusion.evaluation.likelihood import (
    ContinuousTime,
    Estimator,
    MaskCount,
    MonteCarloLikelihood,
    Passage,
    every_mask,
)
from sm_diffusion.types import UserError

CLEAN = MASK = 4  # tokens 0 .. 3, and the mask
CONTEXT, TEXT = (2, 0), (1, 3, 0, 0, 2)
NUM = len(TEXT)


def make_predictor(soft: bool, *, time_conditioning: bool = False) -> Predictor:
    torch.manual_seed(5)
    shape = DiTShape(vocab_size=CLEAN + 1, width=8, num_blocks=1, num_heads=2, cond_width=4)
    model = DiT(shape, parameterization=Subs(MASK), time_conditioning=time_conditioning)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.4 * torch.randn_like(parameter))
    if not soft:
        return HardMaskPredictor(model, mask_id=MASK).eval()
    soft_mask = SoftMask(top_k=2, omega_s=0.9, omega_a=2.0, omega_b=-0.5)
    return SoftMaskPredictor(model, soft_mask, mask_id=MASK, mixing=mixing.linear).eval()


def log_probs(
    predictor: Predictor, masked: Sequence[bool], *, feedback: bool, context: Sequence[int] = CONTEXT
) -> list[float]:
    """log p(x_i | x_t) of every masked token, by full logits: the slow twin."""
    noisy = [*context, *(MASK if m else token for token, m in zip(TEXT, masked, strict=True))]
    ids_BL = torch.tensor([noisy])
    with torch.no_grad():
        logits = predictor(ids_BL, None, Logits())
        if feedback:
            logits = predictor(ids_BL, remember(logits, 2), Logits())
    table = logits[0, len(context) :].double().log_softmax(-1)
    return [float(table[i, TEXT[i]]) for i, m in enumerate(masked) if m]


def every(predictor: Predictor, *, feedback: bool) -> dict[tuple[bool, ...], list[float]]:
    masks = list(itertools.product([False, True], repeat=NUM))
    return {m: log_probs(predictor, m, feedback=feedback) for m in masks}


def bound_by_counts(table: dict[tuple[bool, ...], list[float]]) -> float:
    """E over l uniform and masks of l tokens of n / l * sum log p."""
    total = 0.0
    for count in range(1, NUM + 1):
        masks = [m for m in table if sum(m) == count]
        total += sum(NUM / count * sum(table[m]) for m in masks) / len(masks) / NUM
    return total


def bound_by_time(table: dict[tuple[bool, ...], list[float]], t_min: float) -> float:
    """The integral over t in [t_min, 1] of 1 / t * E[sum log p]; the integrand is a polynomial in t."""
    points, weights = np.polynomial.legendre.leggauss(12)
    total = 0.0
    for point, weight in zip(points.tolist(), weights.tolist(), strict=True):
        t = t_min + (1 - t_min) * (point + 1) / 2
        value = sum(t ** sum(m) * (1 - t) ** (NUM - sum(m)) * sum(found) / t for m, found in table.items())
        total += weight * value * (1 - t_min) / 2
    return total


def orders(table: dict[tuple[bool, ...], list[float]]) -> list[float]:
    """log p of the text for every order of unmasking."""
    found = []
    for order in itertools.permutations(range(NUM)):
        masked, total = [True] * NUM, 0.0
        for position in order:
            total += table[tuple(masked)][sum(masked[:position])]
            masked[position] = False
        found.append(total)
    return found


def likelihood(predictor: Predictor, estimator: Estimator, **settings) -> MonteCarloLikelihood:
    return MonteCarloLikelihood(predictor, estimator, max_length=16, **settings)


@pytest.fixture(scope="module", params=[False, True], ids=["mdlm", "soft"])
def soft(request: pytest.FixtureRequest) -> bool:
    return request.param


@pytest.fixture(scope="module")
def predictor(soft: bool) -> Predictor:
    return make_predictor(soft)


@pytest.fixture(scope="module")
def table(predictor: Predictor, soft: bool) -> dict[tuple[bool, ...], list[float]]:
    return every(predictor, feedback=soft)


def test_summed_masks_equal_enumeration(predictor: Predictor, table: dict, soft: bool) -> None:
    exact = bound_by_counts(table)
    (found,) = likelihood(predictor, MaskCount(num_samples=32))([Passage(CONTEXT, TEXT)])  # 31 masks
    assert found.log_prob == pytest.approx(exact, abs=1e-6)
    assert found.standard_error == 0
    assert found.num_evaluated == 31
    without = likelihood(predictor, MaskCount(num_samples=32), feedback=False)([Passage(CONTEXT, TEXT)])[0]
    assert without.log_prob == pytest.approx(bound_by_counts(every(predictor, feedback=False)), abs=1e-6)
    assert (abs(without.log_prob - exact) > 1e-3) == soft, "feedback must matter for this network"


def test_both_bounds_are_one_and_lie_below_the_likelihood(table: dict) -> None:
    exact, found = bound_by_counts(table), orders(table)
    assert bound_by_time(table, 0.0) == pytest.approx(exact, abs=1e-9)
    assert sum(found) / len(found) == pytest.approx(exact, abs=1e-6)
    log_likelihood = math.log(sum(math.exp(value) for value in found) / len(found))
    assert exact < log_likelihood < 0


def draws(estimator: Estimator, table: dict, num: int) -> tuple[np.ndarray, np.ndarray]:
    """(values, standard errors) of `num` independent estimates, the network read off the table."""
    found = []
    for seed in range(num):
        plan = estimator.plan(NUM, np.random.default_rng(seed))
        sums = np.array([-sum(table[tuple(mask)]) for mask in plan.masks_KN.tolist()])
        found.append(plan.estimate(sums, len(sums)))
    return np.array([e.log_prob for e in found]), np.array([e.standard_error for e in found])


@pytest.mark.parametrize("kind", ["mask_count", "continuous_time"])
def test_estimates_agree_with_enumeration_within_their_error(predictor: Predictor, table: dict, kind: str) -> None:
    """The mean over many draws is the exact value, their standard error the real spread; one through the network."""
    if kind == "mask_count":
        estimator: Estimator = MaskCount(num_samples=30)
        exact = bound_by_counts(table)
    else:
        estimator = ContinuousTime(num_samples=30, t_min=0.02)
        exact = bound_by_time(table, 0.02)
    num = 1500
    values, errors = draws(estimator, table, num)
    assert abs(values.mean() - exact) < 4 * values.std(ddof=1) / math.sqrt(num)
    assert math.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.15)

    (found,) = likelihood(predictor, estimator)([Passage(CONTEXT, TEXT)])
    assert abs(found.log_prob - exact) < 4 * found.standard_error
    assert 0 < found.standard_error < 0.2 * abs(exact)
    assert 0 < found.num_evaluated <= 30


def test_the_mask_count_has_the_smaller_error(table: dict) -> None:
    counts, times = (draws(kind(num_samples=16), table, 300)[0].std() for kind in (MaskCount, ContinuousTime))
    assert counts < 0.5 * times


def test_nothing_depends_on_batches_or_neighbours(predictor: Predictor) -> None:
    passages = [
        Passage(CONTEXT, TEXT),
        Passage((), (1,)),
        Passage((0, 0, 3, 1), (2, 2, 1, 0, 3, 1, 2, 0)),
        Passage(CONTEXT, (0, 0, 0, 0, 0)),
    ]
    done: list[int] = []
    estimator = MaskCount(num_samples=8)
    alone = [likelihood(predictor, estimator, batch_sequences=1)([passage])[0] for passage in passages]
    for size in (1, 3, 64):
        found = likelihood(predictor, estimator, batch_sequences=size)(passages, lambda i, _: done.append(i))
        assert [estimate.log_prob for estimate in found] == pytest.approx([e.log_prob for e in alone], abs=1e-5)
        assert [e.standard_error for e in found] == pytest.approx([e.standard_error for e in alone], abs=1e-5)
    assert sorted(done) == sorted([0, 1, 2, 3] * 3)
    assert alone[1].num_evaluated == 1  # one token: one mask, exact
    other = likelihood(predictor, estimator, seed=2)([passages[0]])[0]
    assert other.log_prob != alone[0].log_prob


def test_a_network_that_is_told_the_noise_level_is_told_it() -> None:
    predictor = make_predictor(False, time_conditioning=True)
    told: list[float] = []

    def sigma(share_B: torch.Tensor) -> torch.Tensor:
        told.extend(share_B.tolist())
        return -torch.log((1 - share_B).clamp_min(1e-3))

    estimator = MaskCount(num_samples=32)
    with_level = likelihood(predictor, estimator, sigma=sigma)([Passage(CONTEXT, TEXT)])[0]
    without = likelihood(predictor, estimator)([Passage(CONTEXT, TEXT)])[0]
    assert sorted(told) == sorted(float(share) for share in every_mask(NUM).shares_K)
    assert abs(with_level.log_prob - without.log_prob) > 1e-4


@pytest.mark.parametrize(
    ("passage", "message"),
    [
        (Passage((0,), ()), "request 0: the continuation has no token"),
        (Passage((0, MASK), (1,)), "request 0 holds the mask token 4"),
        (Passage((0,) * 10, (1,) * 7), r"request 0 has 10 \+ 7 tokens, the model takes 16"),
    ],
)
def test_bad_passages_are_one_line(passage: Passage, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        likelihood(make_predictor(False), MaskCount(num_samples=2))([passage])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num", [0, 1, 3])
def test_samples_come_in_pairs(num: int) -> None:
    with pytest.raises(UserError, match=f"mc_samples={num}: must be even"):
        MaskCount(num_samples=num)
    with pytest.raises(UserError, match=r"t_min=0\.0: must lie between 0 and 1"):
        ContinuousTime(num_samples=2, t_min=0.0)
