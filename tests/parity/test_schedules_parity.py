"""Decode-time schedules of the authors' Dream code, and Fast-dLLM's confidences and choices (schedules.json)."""

from __future__ import annotations

import pytest
import torch

from sm_diffusion.diffusion.soft_mask import ConstantStrength, LinearStrength, StepwiseStrength
from sm_diffusion.sampling.categorical import (
    DrawnProbability,
    Margin,
    MostProbable,
    NegEntropy,
    SampleRule,
    TokenSampling,
)
from sm_diffusion.sampling.orders.base import State
from sm_diffusion.sampling.orders.confidence import ConfidenceOrder, Threshold
from tests.helpers.golden import golden_json

pytestmark = pytest.mark.parity
SCHEDULES = golden_json("schedules")["schedules"]
MEASURES = {"max_prob": DrawnProbability(), "margin": Margin(), "neg_entropy": NegEntropy()}
STRENGTHS = {"none": ConstantStrength(), "linear": LinearStrength(), "stepwise": StepwiseStrength()}


@pytest.mark.parametrize("key", [key for key in SCHEDULES if ".scale" in key])
def test_strength(key):
    name, rest = key.split(".scale")
    scale, values = float(rest.split(".len")[0]), SCHEDULES[key]
    found = [scale * STRENGTHS[name](share) for share in values["masked_share"]]
    assert found == pytest.approx(values["omega_s"], abs=1e-9)


@pytest.mark.parametrize("threshold", [0.25, 0.75])
def test_other_thresholds(threshold):
    strength = StepwiseStrength(threshold=threshold)
    assert [strength(1 - step / 20) for step in range(21)] == SCHEDULES[f"stepwise.threshold{threshold}"]


@pytest.mark.parametrize("case", golden_json("schedules")["confidence"], ids=lambda case: str(case["i"]))
def test_threshold_choices(case):
    """Temperature 0 and no nucleus: the raw softmax; all tokens over .9 a step, and at least one."""
    logits_LV = torch.tensor(case["logits_shifted"])
    ids_BL, masked_L = torch.tensor([case["x"]]), torch.tensor(case["masked"])
    for name, measure in MEASURES.items():
        rule = SampleRule(TokenSampling(temperature=0), MostProbable(), measure, torch.arange(len(logits_LV)))
        drawn_C, confidence_C = rule(logits_LV[masked_L].clone(), masked_L)
        assert drawn_C.tolist() == case["argmax"]
        assert confidence_C.tolist() == pytest.approx(case[f"confidence_{name}"], abs=2e-6)
        if name == "max_prob":
            sure_C = confidence_C
    order = ConfidenceOrder(measure=DrawnProbability(), pace=Threshold(value=0.9))
    masked_BL = torch.zeros_like(ids_BL, dtype=torch.bool)
    masked_BL[0, masked_L] = True
    confidence_BL = torch.full(ids_BL.shape, -torch.inf, dtype=torch.float64)
    confidence_BL[0, masked_L] = sure_C
    open_BL, taken = masked_BL, []
    while bool(masked_BL.any()):
        state = State(
            ids_BL=ids_BL, open_BL=open_BL, masked_BL=masked_BL, confidence_BL=confidence_BL,
            time_B=torch.ones(1, dtype=torch.float64), step=len(taken),
        )  # fmt: skip
        proposal = order.propose(state, None)
        chosen_BL = proposal.choose(confidence_BL.masked_fill(~masked_BL, -torch.inf))
        taken.append(chosen_BL[0].nonzero().flatten().tolist())
        masked_BL = masked_BL & ~chosen_BL
    assert taken == case["parallel_nocache_steps1"]
