"""Blends of embeddings: each rule against its formula, one candidate and many, a few tokens and the vocabulary."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from sm_diffusion.diffusion import mixing
from sm_diffusion.types import DenseMixture, TokenMixture

VOCAB, WIDTH = 9, 6
RULES = {
    "linear": mixing.linear,
    "slerp": mixing.slerp,
    "slerp_to_mean": mixing.slerp_to_mean,
    "slerp_mask_norm": mixing.slerp_mask_norm,
    "slerp_candidate_norm": mixing.slerp_candidate_norm,
    "linear_mask_norm": mixing.linear_mask_norm,
}


@pytest.fixture
def weight_VD():
    return torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def few(ids, shares, strength, mask=8):
    """One position: the mask and candidates `ids` with `shares` of `strength`."""
    weights = [1 - strength, *(strength * share for share in shares)]
    return TokenMixture(torch.tensor([[[mask, *ids]]]), torch.tensor([[weights]], dtype=torch.float64))


def angle(a, b):
    return torch.acos(F.cosine_similarity(a, b, dim=-1).clamp(-1, 1))


@pytest.mark.parametrize("rule", RULES)
def test_norms_and_ends(rule, weight_VD):
    ids, shares, strength = [1, 2, 3], [0.5, 0.3, 0.2], 0.4
    own, others = weight_VD[8], weight_VD[ids]
    out = RULES[rule](weight_VD, few(ids, shares, strength))[0, 0]
    mean_norm = (torch.tensor(shares, dtype=torch.float64) * others.norm(dim=-1)).sum()
    expected = {
        "slerp": 0.6 * own.norm() + 0.4 * mean_norm,
        "slerp_to_mean": 0.6 * own.norm() + 0.4 * mean_norm,
        "slerp_mask_norm": own.norm(),
        "linear_mask_norm": own.norm(),
        "slerp_candidate_norm": mean_norm,
    }
    if rule != "linear":
        assert float(out.norm()) == pytest.approx(float(expected[rule]), rel=1e-9)
    torch.testing.assert_close(RULES[rule](weight_VD, few(ids, shares, 0.0))[0, 0], own)
    if "slerp" in rule:  # the share of the way, as an angle
        end = RULES[rule](weight_VD, few(ids, shares, 1.0))[0, 0]
        assert float(angle(own, out)) == pytest.approx(0.4 * float(angle(own, end)), rel=1e-6)


def test_one_candidate_is_its_own_centre(weight_VD):
    mixture = few([3], [1.0], 0.7)
    torch.testing.assert_close(mixing.slerp(weight_VD, mixture), mixing.slerp_to_mean(weight_VD, mixture))


def test_frechet_centre(weight_VD):
    """Two candidates of equal shares: half way on the sphere; three: closer to them than their mean is."""
    end = mixing.slerp(weight_VD, few([1, 2], [0.5, 0.5], 1.0))[0, 0]
    assert float(angle(end, weight_VD[1])) == pytest.approx(float(angle(end, weight_VD[2])), abs=1e-3)
    spread = {}
    for name in ("slerp", "slerp_to_mean"):
        end = RULES[name](weight_VD, few([1, 2, 4], [0.5, 0.3, 0.2], 1.0))[0, 0]
        spread[name] = float((torch.tensor([0.5, 0.3, 0.2]) * angle(end, weight_VD[[1, 2, 4]]) ** 2).sum())
    assert spread["slerp"] < spread["slerp_to_mean"]


@pytest.mark.parametrize("rule", RULES)
def test_whole_vocabulary_equals_as_many_candidates(rule, weight_VD):
    logits_NV = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    ids_BL = torch.tensor([[8]])
    dense = DenseMixture(ids_BL, torch.tensor([0]), torch.tensor([0.3], dtype=torch.float64), logits_NV)
    shares = logits_NV.softmax(-1)[0].tolist()
    torch.testing.assert_close(RULES[rule](weight_VD, dense), RULES[rule](weight_VD, few(range(VOCAB), shares, 0.3)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("strength", [0.0, 0.4])
def test_gradients_are_finite(rule, strength, weight_VD):
    weight_VD.requires_grad_()
    mixture = few([1, 2], [0.6, 0.4], strength)
    mixture.weights_BLK.requires_grad_()
    RULES[rule](weight_VD, mixture).square().sum().backward()
    assert torch.isfinite(weight_VD.grad).all()
    assert torch.isfinite(mixture.weights_BLK.grad).all()
