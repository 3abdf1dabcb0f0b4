"""MDLM and soft-masked losses against the authors' code: per-token NLL, loss, and the gradient of every parameter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.masking import mask_tokens
from sm_diffusion.diffusion.objective import Noised, denoising_loss
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.readouts.base import Logits, NegLogLikelihood
from sm_diffusion.diffusion.schedule import LogLinear, StratifiedTimes
from sm_diffusion.diffusion.soft_mask import FullVocabularySoftMask, SoftMask, SoftMaskBase
from sm_diffusion.types import Draws, LossOutput
from tests.helpers.golden import RAW_NAMES, Golden, assert_close, tiny_dit

pytestmark = pytest.mark.parity

SCHEDULE = LogLinear(eps=1e-3)


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("mdlm_nll")


def soft_predictor(golden: Golden, soft_mask: SoftMaskBase, raw: str | None) -> SoftMaskPredictor:
    if raw is not None:
        with torch.no_grad():
            for theirs, ours in RAW_NAMES.items():
                if ours in dict(soft_mask.named_parameters()):
                    soft_mask.get_parameter(ours).fill_(golden[f"{raw}.{theirs}"].item())
    return SoftMaskPredictor(tiny_dit(), soft_mask, mask_id=int(golden.meta["mask_id"]), mixing=mixing.linear)


def loss_of(golden: Golden, predictor: Predictor, *, feedback: bool) -> LossOutput:
    masked_BL = golden["xt"] == int(golden.meta["mask_id"])
    real_BL = golden["attention_mask"].bool()
    # The reference masks, softens and attends to padding; only its loss leaves padding out.
    noised = Noised(golden["xt"], golden["x0"], masked_BL & real_BL, masked_BL=masked_BL)
    return denoising_loss(
        predictor,
        noised,
        weight_B=SCHEDULE.loss_weight(golden["t"]),
        sigma_B=SCHEDULE.sigma(golden["t"]),
        num_tokens=real_BL.sum(),
        feedback=feedback,
    )


def per_token_nll(golden: Golden, predictor: Predictor, *, feedback: bool) -> Tensor:
    xt = golden["xt"]
    noised = Noised(xt, golden["x0"], xt == int(golden.meta["mask_id"]))
    memory = predictor.bootstrap(xt, noised.positions_N, feedback=feedback)
    ones_N = torch.ones_like(noised.targets_N, dtype=torch.float32)
    with torch.no_grad():
        nll = predictor(xt, memory, NegLogLikelihood(noised.positions_N, noised.targets_N, ones_N))
    weights_N = SCHEDULE.loss_weight(golden["t"])[noised.positions_N // xt.shape[1]]
    out = torch.zeros(xt.numel())
    out[noised.positions_N] = nll.nll_N * weights_N
    return out.view_as(xt)


def check_gradients(predictor: Predictor, golden: Golden, prefix: str, tolerance: float = 1e-4) -> None:
    references = golden.group(f"{prefix}.grad.")
    assert references
    ours = {}
    for name, parameter in predictor.named_parameters():
        ours[name.replace("denoiser.", "backbone.", 1)] = parameter.grad
    for theirs, mine in RAW_NAMES.items():
        if f"soft_mask.{mine}" in ours:
            ours[f"tran_head.{theirs}"] = ours.pop(f"soft_mask.{mine}")
    omegas = []
    for name, reference in references.items():
        gradient = ours[name]
        assert gradient is not None, name
        if name.startswith("tran_head."):
            omegas.append((gradient.view(1), reference.view(1)))
            continue
        assert_close(gradient.reshape(reference.shape), reference, tolerance, name)
    if omegas:
        # One vector: a small component is a difference of sums many times its size, which float32 does not determine.
        ours_O, reference_O = (torch.cat(parts) for parts in zip(*omegas, strict=True))
        assert_close(ours_O, reference_O, tolerance, "omegas")


def test_schedule(golden: Golden) -> None:
    t = golden["t"]
    assert_close(SCHEDULE.alpha(t), golden["alpha_t"], 1e-6)
    assert_close(SCHEDULE.sigma(t), golden["sigma_t"], 1e-5)
    assert_close(SCHEDULE.dalpha(t), golden["dalpha_t"].expand(4), 1e-6)
    assert_close(SCHEDULE.loss_weight(t), 1 / t, 1e-6)
    assert torch.equal(
        mask_tokens(golden["x0"], SCHEDULE.mask_probability(t), golden["u"], int(golden.meta["mask_id"]))[0],
        golden["xt"],
    )


def test_log_probs(golden: Golden) -> None:
    model = tiny_dit()
    with torch.no_grad():
        logits_BLV = model(golden["xt"], Logits(), mixing=mixing.linear)
    ours = model.parameterization.log_probs(logits_BLV, golden["xt"])  # type: ignore[attr-defined]
    for key in ("mdlm.log_x_theta", "sm.log_x_theta_pass1"):
        possible = golden[key] > -1e4
        assert torch.equal(possible, ours > -1e4)
        assert_close(ours[possible], golden[key][possible], 1e-4, key)


def test_mdlm(golden: Golden) -> None:
    predictor = HardMaskPredictor(tiny_dit(), mask_id=int(golden.meta["mask_id"]))
    assert_close(per_token_nll(golden, predictor, feedback=True), golden["mdlm.nll_per_token"], 1e-4)
    out = loss_of(golden, predictor, feedback=False)
    assert out.num_passes == 1
    assert_close(out.loss, golden["mdlm.loss"], 1e-4)
    assert_close(out.nll_sum, golden["mdlm.nlls"], 1e-4)
    assert int(out.num_tokens) == int(golden["mdlm.num_tokens"])
    out.loss.backward()
    check_gradients(predictor, golden, "mdlm")


@pytest.mark.parametrize("top_k", [1, 3])
def test_soft_masked(golden: Golden, top_k: int) -> None:
    predictor = soft_predictor(golden, SoftMask(top_k=top_k, omega_s=0.6, omega_a=2.0, omega_b=-2.0), "sm.head")
    positions_N = torch.arange(golden["xt"].numel())[(golden["xt"] == predictor.mask_id).flatten()]
    memory = predictor.bootstrap(golden["xt"], positions_N, feedback=True)
    mixture = predictor.soft_mask(golden["xt"], memory, predictor.mask_id)
    assert torch.equal(mixture.ids_BLK, golden[f"sm_k{top_k}.soft_indices"])
    assert_close(mixture.weights_BLK, golden[f"sm_k{top_k}.soft_probs"], 1e-5)
    assert_close(per_token_nll(golden, predictor, feedback=True), golden[f"sm_k{top_k}.nll_per_token"], 1e-4)
    out = loss_of(golden, predictor, feedback=True)
    assert out.num_passes == 2
    assert_close(out.loss, golden[f"sm_k{top_k}.loss"], 1e-4)
    out.loss.backward()
    check_gradients(predictor, Golden("mdlm_sm_grads"), f"sm_k{top_k}")


def test_full_vocabulary(golden: Golden) -> None:
    soft_mask = FullVocabularySoftMask(temperature=1.0, omega_s=0.6, omega_a=2.0, omega_b=-2.0)
    predictor = soft_predictor(golden, soft_mask, "sm.head")
    out = loss_of(golden, predictor, feedback=True)
    assert_close(out.loss, golden["sm_temp.loss"], 1e-4)
    out.loss.backward()
    check_gradients(predictor, golden, "sm_temp")


def test_published_start(golden: Golden) -> None:
    predictor = soft_predictor(golden, SoftMask(top_k=3, omega_s=0.0, omega_a=6.66, omega_b=-0.75), None)
    out = loss_of(golden, predictor, feedback=True)
    assert_close(out.loss, golden["sm_default.loss"], 1e-4)
    out.loss.backward()
    check_gradients(predictor, golden, "sm_default", 1e-4)


def test_stratified_times_and_masking_order(golden: Golden) -> None:
    times = StratifiedTimes(t_min=1e-3, t_max=1.0)
    generator = torch.Generator().manual_seed(1234)
    time_B = torch.rand(4, generator=generator)
    mask_BL = torch.rand(4, 32, generator=generator)
    t_B = times(Draws(time_B, mask_BL, torch.arange(4), 4))
    assert_close(t_B, golden["rng1234.t"], 1e-6)
    xt, _ = mask_tokens(golden["x0"], SCHEDULE.mask_probability(t_B), mask_BL, int(golden.meta["mask_id"]))
    assert torch.equal(xt, golden["rng1234.xt"])
    generator = torch.Generator().manual_seed(77)
    for accumulation in range(2):
        # The reference draws for the whole global batch in every micro-step and keeps its own slice.
        rows_B = torch.arange(4) + 4 * accumulation
        draws = Draws(torch.rand(8, generator=generator)[rows_B], mask_BL, rows_B, 8)
        assert_close(times(draws), golden[f"rng77.t_accum{accumulation}"], 1e-6)
