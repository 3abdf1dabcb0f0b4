"""SoftMask against the authors' head: values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.soft_mask import FullVocabularySoftMask, SoftMask, SoftMaskBase, remember
from sm_diffusion.types import LogitsMemory
from tests.helpers.golden import RAW_NAMES, Golden, assert_close

pytestmark = pytest.mark.parity



def load_omegas(soft_mask: SoftMaskBase, golden: Golden, params: str) -> None:
    with torch.no_grad():
        for theirs, ours in RAW_NAMES.items():
            if ours in dict(soft_mask.named_parameters()):
                soft_mask.get_parameter(ours).fill_(golden[f"params.{params}.{theirs}"].item())


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("soft_mask_head")


@pytest.mark.parametrize("params", ["default", "nontrivial"])
def test_effective_values_and_our_inverse(golden: Golden, params: str) -> None:
    soft_mask = FullVocabularySoftMask(omega_s=0.5, omega_a=1.0, omega_b=-1.0, temperature=1.0)
    load_omegas(soft_mask, golden, params)
    for ours, theirs in (("omega_s", "scale"), ("omega_a", "steepness"), ("omega_b", "centre")):
        assert_close(getattr(soft_mask, ours), golden[f"params.{params}.{theirs}"].view(1), 1e-6, ours)
    assert_close(soft_mask.temperature, golden[f"params.{params}.temperature"].view(1), 1e-6)
    settings = {"default": (0.0, 6.66, -0.75, 1.0), "nontrivial": (0.7, 4.0, -1.3, 0.8)}[params]
    started = FullVocabularySoftMask(
        omega_s=settings[0], omega_a=settings[1], omega_b=settings[2], temperature=settings[3]
    )
    for theirs, ours in RAW_NAMES.items():
        assert_close(started.get_parameter(ours), golden[f"params.{params}.{theirs}"].view(1), 1e-5, ours)


@pytest.mark.parametrize("logits_kind", ["raw", "subs"])
@pytest.mark.parametrize("top_k", [1, 3, 5])
@pytest.mark.parametrize("params", ["default", "nontrivial"])
def test_top_k(golden: Golden, params: str, top_k: int, logits_kind: str) -> None:
    case = f"{params}.topk{top_k}.{logits_kind}"
    mask_id = int(golden.meta["mask_id"])
    soft_mask = SoftMask(top_k=top_k, omega_s=0.5, omega_a=1.0, omega_b=-1.0)
    load_omegas(soft_mask, golden, params)
    ids_BL = golden["ids"]
    logits_BLV = golden[f"logits_{logits_kind}"].requires_grad_()
    embedding_VD = golden["embedding"].requires_grad_()

    memory = remember(logits_BLV, top_k)
    mixture = soft_mask(ids_BL, memory, mask_id)
    assert torch.equal(mixture.ids_BLK, golden[f"{case}.indices"])
    assert_close(mixture.weights_BLK, golden[f"{case}.probs"], 1e-5, "probs")
    assert_close(memory.neg_entropy_BL, golden[f"{case}.neg_entropy"], 1e-5, "neg_entropy")
    assert_close(mixture.weights_BLK[..., 1:].sum(-1), golden[f"{case}.lam"], 1e-5, "lambda")

    blend_BLD = mixing.linear(embedding_VD, mixture)
    assert_close(blend_BLD, golden[f"{case}.blend"], 1e-5, "blend")
    (blend_BLD**2).sum().backward()
    check_gradients(golden, case, soft_mask, embedding_VD, logits_BLV if logits_kind == "raw" else None)


@pytest.mark.parametrize("logits_kind", ["raw", "subs"])
@pytest.mark.parametrize("params", ["default", "nontrivial"])
def test_full_vocabulary(golden: Golden, params: str, logits_kind: str) -> None:
    case = f"{params}.temp.{logits_kind}"
    mask_id = int(golden.meta["mask_id"])
    soft_mask = FullVocabularySoftMask(omega_s=0.5, omega_a=1.0, omega_b=-1.0, temperature=1.0)
    load_omegas(soft_mask, golden, params)
    ids_BL = golden["ids"]
    logits_BLV = golden[f"logits_{logits_kind}"].requires_grad_()
    embedding_VD = golden["embedding"].requires_grad_()

    everywhere_N = torch.arange(ids_BL.numel())
    mixture = soft_mask(ids_BL, LogitsMemory(everywhere_N, logits_BLV.flatten(0, 1)), mask_id)
    assert_close(mixture.lambda_N.view_as(ids_BL), golden[f"{case}.lam"], 1e-5, "lambda")
    blend_BLD = mixing.linear(embedding_VD, mixture)
    assert_close(blend_BLD, golden[f"{case}.blend"], 1e-5, "blend")
    (blend_BLD**2).sum().backward()
    check_gradients(golden, case, soft_mask, embedding_VD, logits_BLV if logits_kind == "raw" else None)


def check_gradients(
    golden: Golden, case: str, soft_mask: SoftMaskBase, embedding_VD: Tensor, logits_BLV: Tensor | None
) -> None:
    assert embedding_VD.grad is not None
    assert_close(embedding_VD.grad, golden[f"{case}.grad.embedding"], 1e-5, "grad embedding")
    if logits_BLV is not None:
        assert logits_BLV.grad is not None
        assert_close(logits_BLV.grad, golden[f"{case}.grad.logits"], 1e-5, "grad logits")
    # The omegas' gradients are one vector: each is a sum of terms up to 1,000 times its size, so float32 leaves
    # 1e-5 of a small component undetermined (the reference itself is 5e-6 from a float64 evaluation).
    pairs = [
        (soft_mask.get_parameter(ours).grad, golden[f"{case}.grad.{theirs}"])
        for theirs, ours in RAW_NAMES.items()
        if f"{case}.grad.{theirs}" in golden.keys
    ]
    assert len(pairs) >= 3
    ours_O = torch.cat([gradient for gradient, _ in pairs if gradient is not None])
    assert_close(ours_O, torch.stack([reference for _, reference in pairs]), 1e-5, "grad omegas")


def test_a_row_without_masks_is_left_alone(golden: Golden) -> None:
    ids_BL = golden["nomask.ids"]
    logits_BLV = torch.randn(*ids_BL.shape, golden["embedding"].shape[0])
    soft_mask = SoftMask(top_k=3, omega_s=0.7, omega_a=4.0, omega_b=-1.3)
    mixture = soft_mask(ids_BL, remember(logits_BLV, 3), int(golden.meta["mask_id"]))
    assert torch.equal(mixture.ids_BLK, golden["nomask.indices"])
    assert torch.equal(mixture.weights_BLK, golden["nomask.probs"])
