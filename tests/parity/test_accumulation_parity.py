"""Gradients of a step's micro-batches are summed in the released fine-tuning (finetune_accumulation)."""

from __future__ import annotations

import math

import pytest
import torch

from sm_diffusion.training.optim import for_summed_gradients
from tests.helpers.golden import Golden, assert_close, golden_json

pytestmark = pytest.mark.parity
RUNS = {name: run for name, run in golden_json("finetune_accumulation").items() if name != "meta"}
MICRO, CLIP, LR, EPS = 8, 7.0, 1e-5, 1e-8


@pytest.mark.parametrize("name", RUNS)
def test_they_are_summed_and_then_clipped(name):
    for step in RUNS[name]["steps"]:
        assert step["max_norm"] == CLIP
        assert step["norm_returned_by_clip"] == pytest.approx(step["norm_of_sum_of_micro_gradients"], rel=1e-5)
        mean = step["norm_of_sum_of_micro_gradients"] / step["micro_batches"]
        assert step["norm_of_mean_of_micro_gradients"] == pytest.approx(mean, rel=1e-6)
        assert step["norm_after_clip"] == pytest.approx(min(CLIP, step["norm_of_accumulated"]), rel=1e-5)


def steps_of(gradients, *, divide_by, clip_norm, eps):
    """Weights after AdamW steps with the released gradients, from zero."""
    weights = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients[0]]
    optimizer = torch.optim.AdamW(weights, lr=LR, eps=eps, weight_decay=0.0)
    norms = []
    for parts in gradients:
        for weight, gradient in zip(weights, parts, strict=True):
            weight.grad = gradient / divide_by
        norms.append(float(torch.nn.utils.clip_grad_norm_(weights, clip_norm)))
        optimizer.step()
    return [weight.detach() for weight in weights], norms


@pytest.mark.parametrize("faint", [1.0, 1e-10])
def test_settings_of_the_mean_make_the_same_steps(faint):
    """Also where gradients are as small as Adam's eps, as those of the omegas are at first."""
    golden, numbers = Golden("finetune_accumulation"), RUNS["soft_16"]["steps"]
    steps = [golden.group(f"soft_16.step{index}.accumulated.") for index in range(2)]
    gradients = [[faint * step[key].double() for key in sorted(step)] for step in steps]
    clip_norm, eps = for_summed_gradients(clip_norm=CLIP, eps=EPS, micro_batches=MICRO)
    assert (clip_norm, eps) == (0.875, 1.25e-9)
    summed, norms = steps_of(gradients, divide_by=1, clip_norm=CLIP, eps=EPS)
    ours, own_norms = steps_of(gradients, divide_by=MICRO, clip_norm=clip_norm, eps=eps)
    for one, other in zip(summed, ours, strict=True):
        assert_close(other, one, 1e-5)
    for norm, own, step in zip(norms, own_norms, numbers, strict=True):
        assert norm == pytest.approx(faint * step["norm_returned_by_clip"], rel=1e-5)
        assert own == pytest.approx(norm / MICRO, rel=1e-9)
    if faint < 1:  # with the eps of the sum the mean would move less
        slower, _ = steps_of(gradients, divide_by=MICRO, clip_norm=clip_norm, eps=EPS)
        total = math.fsum(float(weight.abs().sum()) for weight in slower)
        assert total < 0.9 * math.fsum(float(weight.abs().sum()) for weight in summed)


@pytest.mark.parametrize("name", RUNS)
def test_every_micro_batch_has_a_coin_of_its_own(name):
    micro = RUNS[name]["micro"]
    assert all(one["soft"] == (one["coin"] is not None and one["coin"] < 0.5) for one in micro)
    if name.startswith("soft"):
        assert len({one["soft"] for one in micro[:MICRO]}) == 2
