"""The DiT against MDLM's network: shapes, initialisation, logits, log-probabilities."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor

from sm_diffusion.denoisers.dit.layers import rotary_tables
from sm_diffusion.denoisers.dit.model import DiT, DiTShape
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.contracts import DenoiserInput
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.diffusion.readouts.base import Logits
from sm_diffusion.types import DenseMixture, TokenMixture
from tests.helpers.golden import GOLDEN, Golden, assert_close, tiny_dit

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("dit")


def without_mask_column(logits_BLV: Tensor, mask_id: int) -> Tensor:
    # Ours gives the mask token probability zero at once; the reference does it in a later step.
    return torch.cat([logits_BLV[..., :mask_id], logits_BLV[..., mask_id + 1 :]], -1)


def check_logits(golden: Golden, key: str, inputs: DenoiserInput, sigma_B: Tensor | None = None) -> None:
    mask_id = int(golden.meta["mask_id"])
    model = tiny_dit()
    model.time_conditioning = sigma_B is not None
    with torch.no_grad():
        logits_BLV = model(inputs, Logits(), mixing=mixing.linear, sigma_B=sigma_B)
    assert_close(without_mask_column(logits_BLV, mask_id), without_mask_column(golden[key], mask_id), 1e-4, key)


def test_logits_of_ids(golden: Golden) -> None:
    check_logits(golden, "logits_sigma0", golden["ids"])


def test_logits_with_time_conditioning(golden: Golden) -> None:
    check_logits(golden, "logits_sigma", golden["ids"], golden["sigma"])


def test_logits_of_soft_tokens(golden: Golden) -> None:
    check_logits(golden, "logits_soft", TokenMixture(golden["soft_indices"], golden["soft_probs"]))


def test_logits_of_dense_mixture(golden: Golden) -> None:
    probs_BLV = golden["dense_probs"]
    num_positions = probs_BLV.shape[0] * probs_BLV.shape[1]
    mixture = DenseMixture(
        golden["ids"], torch.arange(num_positions), torch.ones(num_positions), probs_BLV.flatten(0, 1).log()
    )
    check_logits(golden, "logits_dense", mixture)


def test_log_probs(golden: Golden) -> None:
    mask_id = int(golden.meta["mask_id"])
    with torch.no_grad():
        logits_BLV = tiny_dit()(golden["ids"], Logits(), mixing=mixing.linear)
    ours = Subs(mask_id).log_probs(logits_BLV, golden["ids"])
    reference = golden["log_probs_subs_sigma0"]
    possible = reference > -1e4
    assert torch.equal(possible, ours > -1e4)
    assert_close(ours[possible], reference[possible], 1e-4)


def test_rotary_tables(golden: Golden) -> None:
    cos_LE, sin_LE = rotary_tables(32, 16, torch.device("cpu"))
    # Angles up to 31, each a power, a division and a product of float32: 31 * 4 * 2^-24 = 7e-6.
    assert_close(cos_LE, golden["rotary_cos"], 1e-5)
    assert_close(sin_LE, golden["rotary_sin"], 1e-5)


def test_small_scale_has_the_published_parameters_and_initialisation() -> None:
    reference = json.loads((GOLDEN / "small_param_list.json").read_text())
    shape = DiTShape(vocab_size=50_258, width=768, num_blocks=12, num_heads=12, cond_width=128)
    model = DiT(shape, parameterization=Subs(50_257))
    ours = dict(model.named_parameters())
    assert list(ours) == list(reference["params"])
    assert sum(p.numel() for p in ours.values()) == reference["total"] == shape.num_parameters()
    for name, stats in reference["params"].items():
        assert list(ours[name].shape) == stats["shape"], name
        values = ours[name].detach()
        assert values.std().item() == pytest.approx(stats["std"], rel=0.1, abs=1e-8), name
        assert values.abs().max().item() == pytest.approx(stats["absmax"], rel=0.05, abs=1e-8), name
