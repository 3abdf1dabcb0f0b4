"""How a weighted set of token embeddings becomes one input vector."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sm_diffusion.registry import register
from sm_diffusion.types import DenseMixture, TokenMixture

_DENSE_ROWS = 256  # rows of (rows, V) probabilities alive at once in the full-vocabulary variant


@register("mixing", "linear")
def linear(weight_VD: Tensor, mixture: TokenMixture | DenseMixture) -> Tensor:
    """sum_k weights_k E[ids_k], the paper's blend; (B, L, D). One gather-and-sum, no (B, L, K, D) tensor."""
    if isinstance(mixture, DenseMixture):
        return _dense(weight_VD, mixture, spherical_blend=False)
    shape_BLK = mixture.ids_BLK.shape
    bags_ND = F.embedding_bag(
        mixture.ids_BLK.reshape(-1, shape_BLK[-1]),
        weight_VD,
        mode="sum",
        per_sample_weights=mixture.weights_BLK.reshape(-1, shape_BLK[-1]).to(weight_VD.dtype),
    )
    return bags_ND.view(*shape_BLK[:-1], -1)


@register("mixing", "spherical")
def spherical(weight_VD: Tensor, mixture: TokenMixture | DenseMixture) -> Tensor:
    """Interpolate directions on the sphere and norms on the line (arXiv 2608.06529); (B, L, D).

    With a = E[input], c = sum_k pi_k E[k], theta the angle between them, lambda = 1 - weight_0:
        direction = (sin((1 - lambda) theta) a/|a| + sin(lambda theta) c/|c|) / sin theta
        norm      = (1 - lambda) |a| + lambda sum_k pi_k |E[k]|
    Linear mixing shrinks norms where the blended embeddings point apart; this keeps them.
    """
    if isinstance(mixture, DenseMixture):
        return _dense(weight_VD, mixture, spherical_blend=True)
    vectors_BLKD = F.embedding(mixture.ids_BLK, weight_VD)
    own_BLD, others_BLKD = vectors_BLKD[..., 0, :], vectors_BLKD[..., 1:, :]
    weights_BLK = mixture.weights_BLK[..., 1:].to(weight_VD.dtype)
    lambda_BL = weights_BLK.sum(-1)
    pi_BLK = weights_BLK / lambda_BL[..., None].clamp_min(torch.finfo(weights_BLK.dtype).tiny)
    centre_BLD = (pi_BLK[..., None] * others_BLKD).sum(-2)
    norm_BL = (pi_BLK * others_BLKD.norm(dim=-1)).sum(-1)
    # At lambda = 0 nothing may move, and the angle to an empty blend has no gradient: use the token itself.
    soft_BL1 = (lambda_BL > 0)[..., None]
    blend_BLD = slerp(own_BLD, torch.where(soft_BL1, centre_BLD, own_BLD), norm_BL, lambda_BL)
    return torch.where(soft_BL1, blend_BLD, own_BLD)


def slerp(own_ND: Tensor, other_ND: Tensor, other_norm_N: Tensor, lambda_N: Tensor) -> Tensor:
    """Spherical interpolation of directions with linear interpolation of norms; shapes (..., D) and (...)."""
    eps = torch.finfo(own_ND.dtype).eps
    a_ND = F.normalize(own_ND, dim=-1)
    b_ND = F.normalize(other_ND, dim=-1)
    cosine_N1 = (a_ND * b_ND).sum(-1, keepdim=True).clamp(-1 + 4 * eps, 1 - 4 * eps)
    theta_N1 = torch.acos(cosine_N1)
    lambda_N1 = lambda_N[..., None].to(own_ND.dtype)
    direction_ND = (
        torch.sin((1 - lambda_N1) * theta_N1) * a_ND + torch.sin(lambda_N1 * theta_N1) * b_ND
    ) / torch.sin(theta_N1)
    norm_N1 = (1 - lambda_N1) * own_ND.norm(dim=-1, keepdim=True) + lambda_N1 * other_norm_N[..., None]
    blended_ND: Tensor = direction_ND * norm_N1
    return blended_ND


def _dense_rows(
    weight_VD: Tensor, own_CD: Tensor, lambda_C: Tensor, logits_CV: Tensor, spherical_blend: bool
) -> Tensor:
    probs_CV = logits_CV.softmax(-1).to(weight_VD.dtype)
    centre_CD = probs_CV @ weight_VD
    if spherical_blend:
        return slerp(own_CD, centre_CD, probs_CV @ weight_VD.norm(dim=-1), lambda_C)
    lambda_C1 = lambda_C[:, None].to(weight_VD.dtype)
    return (1 - lambda_C1) * own_CD + lambda_C1 * centre_CD


def _dense(weight_VD: Tensor, mixture: DenseMixture, *, spherical_blend: bool) -> Tensor:
    embedded_BLD = F.embedding(mixture.ids_BL, weight_VD)
    flat_MD = embedded_BLD.reshape(-1, embedded_BLD.shape[-1])
    rows = []
    for start in range(0, mixture.positions_N.shape[0], _DENSE_ROWS):
        chunk = slice(start, start + _DENSE_ROWS)
        own_CD = flat_MD.index_select(0, mixture.positions_N[chunk])
        soft = (own_CD, mixture.lambda_N[chunk], mixture.logits_NV[chunk])
        rows.append(checkpoint(_dense_rows, weight_VD, *soft, spherical_blend, use_reentrant=False))
    if not rows:
        return embedded_BLD
    return flat_MD.index_copy(0, mixture.positions_N, torch.cat(rows)).view_as(embedded_BLD)
