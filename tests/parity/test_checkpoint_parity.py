"""Published Lightning checkpoints reproduce the outputs of the official code, raw and EMA, one pass and two."""

from __future__ import annotations

import pytest
import torch

from sm_diffusion.denoisers.checkpoints.weights import dit_shape, load_into, read_weights
from sm_diffusion.denoisers.dit.model import DiT
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.readouts.base import Logits, Summarize
from sm_diffusion.diffusion.soft_mask import SoftMask
from tests.helpers.golden import GOLDEN, Golden, assert_close

pytestmark = pytest.mark.parity

TOP_K = 3


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("ckpt_outputs")


@pytest.mark.parametrize("weights", ["raw", "ema"])
@pytest.mark.parametrize("suffix", ["", "_plain"])
@pytest.mark.parametrize("algorithm", ["mdlm", "mdlm_sm"])
def test_outputs(golden: Golden, algorithm: str, suffix: str, weights: str) -> None:
    path = GOLDEN / f"ckpt_{algorithm}{suffix}.ckpt"
    loaded = read_weights(path, weights=weights)
    if weights == "ema":
        for name, reference in golden.group(f"{algorithm}.ema.backbone.").items():
            assert torch.equal(loaded.denoiser[name], reference), name
    mask_id = int(golden.meta["mask_id"])
    model = DiT(dit_shape(loaded, num_heads=int(golden.meta["heads"])), parameterization=Subs(mask_id))
    load_into(model, loaded.denoiser, source=path, what="DiT")
    predictor: Predictor = HardMaskPredictor(model, mask_id=mask_id)
    if algorithm == "mdlm_sm":
        assert len(loaded.soft_mask) == 4
        soft_mask = SoftMask(top_k=TOP_K, omega_s=0.5, omega_a=1.0, omega_b=-1.0)
        del loaded.soft_mask["raw_temperature"]
        load_into(soft_mask, loaded.soft_mask, source=path, what="soft mask")
        predictor = SoftMaskPredictor(model, soft_mask, mask_id=mask_id, mixing=mixing.linear)
    predictor.eval()
    ids_BL = golden[f"{algorithm}.ids"]
    check(predictor, golden, f"{algorithm}.log_p_{weights}", ids_BL, None)
    if algorithm == "mdlm_sm":
        positions_N = (ids_BL == mask_id).flatten().nonzero().squeeze(1)
        memory = predictor(ids_BL, None, Summarize(positions_N, top_k=TOP_K))
        check(predictor, golden, f"{algorithm}.log_p_{weights}_pass2", ids_BL, memory)


def check(predictor: Predictor, golden: Golden, key: str, ids_BL: torch.Tensor, memory: object) -> None:
    with torch.no_grad():
        logits_BLV = predictor(ids_BL, memory, Logits())
    ours = Subs(predictor.mask_id).log_probs(logits_BLV, ids_BL)
    possible = golden[key] > -1e4
    assert torch.equal(possible, ours > -1e4)
    assert_close(ours[possible], golden[key][possible], 1e-4, key)
