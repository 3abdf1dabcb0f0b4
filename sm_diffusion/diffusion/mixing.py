"""How a weighted set of token embeddings becomes one input vector."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sm_diffusion.registry import register
from sm_diffusion.types import DenseMixture, TokenMixture

KARCHER_STEPS = 3
_DENSE_ROWS = 256  # rows of (rows, V) probabilities alive at once in the full-vocabulary variant


@register("mixing", "linear")
def linear(weight_VD: Tensor, mixture: TokenMixture | DenseMixture) -> Tensor:
    """sum_k weights_k E[ids_k], the paper's blend; (B, L, D). One gather-and-sum, no (B, L, K, D) tensor."""
    if isinstance(mixture, DenseMixture):
        return _dense(weight_VD, mixture, Blend("line", "own"))
    shape_BLK = mixture.ids_BLK.shape
    bags_ND = F.embedding_bag(
        mixture.ids_BLK.reshape(-1, shape_BLK[-1]),
        weight_VD,
        mode="sum",
        per_sample_weights=mixture.weights_BLK.reshape(-1, shape_BLK[-1]).to(weight_VD.dtype),
    )
    return bags_ND.view(*shape_BLK[:-1], -1)


class Blend(NamedTuple):
    """How a = E[input] and the candidates v_k with shares pi_k, sum 1, become one vector; lambda in [0, 1].

    path: line:   (1 - lambda) a + lambda c, c = sum_k pi_k v_k.
          mean:   (sin((1 - lambda) theta) a/|a| + sin(lambda theta) c/|c|) / sin theta, theta the angle of a and c.
          centre: the same with c the Frechet mean of the directions v_k/|v_k| on the sphere.
    norm: of the result. own: what a line gives. interpolated: (1 - lambda) |a| + lambda sum_k pi_k |v_k|. mask: |a|.
          candidates: sum_k pi_k |v_k|.
    """

    path: str
    norm: str


@register("mixing", "slerp")
def slerp(weight_VD: Tensor, mixture: TokenMixture | DenseMixture) -> Tensor:
    """Interpolate directions on the sphere towards the Frechet mean of the candidates, norms on the line; (B, L, D).

    Source: "Lost in Interpolation" (Nigam et al., arXiv 2608.06529), with its three Karcher steps. With learned
    omegas, 169M, 5,000 steps of continuation: validation perplexity 23.23 (linear 23.10, none 22.93), MAUVE .0293
    (.0071, .0201).
    """
    return _blended(weight_VD, mixture, Blend("centre", "interpolated"))


@register("mixing", "spherical")
@register("mixing", "slerp_to_mean")
def slerp_to_mean(weight_VD: Tensor, mixture: TokenMixture | DenseMixture) -> Tensor:
    """Directions on the sphere towards the weighted mean, norms on the line; (B, L, D). This project's own hybrid.

    Between `slerp`, whose centre is the Frechet mean, and `slerp_mask_norm`, which keeps the mask's norm. Linear mixing
    shrinks norms where the blended embeddings point apart; this keeps them. `spherical` is its name in older runs.
    """
    return _blended(weight_VD, mixture, Blend("mean", "interpolated"))


@register("mixing", "slerp_mask_norm")
def slerp_mask_norm(weight_VD: Tensor, mixture: TokenMixture | DenseMixture) -> Tensor:
    """Directions on the sphere towards the weighted mean, the norm of the mask's embedding; (B, L, D).

    The best rule of "Rethinking soft tokens for parallel decoding" (Kawamura et al., arXiv 2609.37391), which needs no
    training: lambda .3 and k 2 for code, .1 and 3 for mathematics. The centre, which we could not read there, is the
    weighted mean here.
    """
    return _blended(weight_VD, mixture, Blend("mean", "mask"))


@register("mixing", "slerp_candidate_norm")
def slerp_candidate_norm(weight_VD: Tensor, mixture: TokenMixture | DenseMixture) -> Tensor:
    """As `slerp_mask_norm` with the candidates' mean norm, the second best of arXiv 2609.37391; (B, L, D)."""
    return _blended(weight_VD, mixture, Blend("mean", "candidates"))


@register("mixing", "linear_mask_norm")
def linear_mask_norm(weight_VD: Tensor, mixture: TokenMixture | DenseMixture) -> Tensor:
    """The paper's blend, rescaled to the norm of the mask's embedding; the third of arXiv 2609.37391; (B, L, D)."""
    return _blended(weight_VD, mixture, Blend("line", "mask"))


def _blended(weight_VD: Tensor, mixture: TokenMixture | DenseMixture, blend: Blend) -> Tensor:
    if isinstance(mixture, DenseMixture):
        return _dense(weight_VD, mixture, blend)
    vectors_BLKD = F.embedding(mixture.ids_BLK, weight_VD)
    own_BLD, others_BLKD = vectors_BLKD[..., 0, :], vectors_BLKD[..., 1:, :]
    weights_BLK = mixture.weights_BLK[..., 1:].to(weight_VD.dtype)
    lambda_BL = weights_BLK.sum(-1)
    # At lambda = 0 nothing may move, and the angle to an empty blend has no gradient: use the token itself.
    soft_BL1 = (lambda_BL > 0)[..., None]
    first_K = torch.arange(weights_BLK.shape[-1], device=weights_BLK.device) == 0
    pi_BLK = weights_BLK / lambda_BL[..., None].clamp_min(torch.finfo(weights_BLK.dtype).tiny)
    pi_BLK = torch.where(soft_BL1, pi_BLK, first_K.to(pi_BLK.dtype))
    others_BLKD = torch.where(soft_BL1[..., None], others_BLKD, own_BLD[..., None, :])
    return torch.where(soft_BL1, _blend(own_BLD, lambda_BL, _Few(others_BLKD, pi_BLK), blend), own_BLD)


class _Few(NamedTuple):
    """Candidates given one by one: vectors (..., K, D), shares (..., K)."""

    vectors_NKD: Tensor
    pi_NK: Tensor

    def combine(self, weights_NK: Tensor, *, unit: bool) -> Tensor:
        """sum_k weights_k v_k, or of the directions v_k/|v_k|."""
        vectors_NKD = F.normalize(self.vectors_NKD, dim=-1) if unit else self.vectors_NKD
        return (weights_NK[..., None] * vectors_NKD).sum(-2)

    def cosines(self, direction_ND: Tensor) -> Tensor:
        return (F.normalize(self.vectors_NKD, dim=-1) * direction_ND[..., None, :]).sum(-1)

    def mean_norm(self) -> Tensor:
        norms_NK: Tensor = self.vectors_NKD.norm(dim=-1)
        return (self.pi_NK * norms_NK).sum(-1)


class _All(NamedTuple):
    """The whole vocabulary as candidates: vectors (V, D), shares (..., V)."""

    vectors_VD: Tensor
    pi_NK: Tensor

    def combine(self, weights_NK: Tensor, *, unit: bool) -> Tensor:
        return weights_NK @ (F.normalize(self.vectors_VD, dim=-1) if unit else self.vectors_VD)

    def cosines(self, direction_ND: Tensor) -> Tensor:
        return direction_ND @ F.normalize(self.vectors_VD, dim=-1).T

    def mean_norm(self) -> Tensor:
        norms_V: Tensor = self.vectors_VD.norm(dim=-1)
        return self.pi_NK @ norms_V


def _blend(own_ND: Tensor, lambda_N: Tensor, candidates: _Few | _All, blend: Blend) -> Tensor:
    """The rule itself; shapes (..., D) and (...)."""
    lambda_N1 = lambda_N[..., None].to(own_ND.dtype)
    own_norm_N1: Tensor = own_ND.norm(dim=-1, keepdim=True)
    centre_ND = candidates.combine(candidates.pi_NK, unit=False)
    if blend.path == "line":
        direction_ND = (1 - lambda_N1) * own_ND + lambda_N1 * centre_ND
        if blend.norm == "own":
            return direction_ND
        direction_ND = F.normalize(direction_ND, dim=-1)
    else:
        if blend.path == "centre":
            centre_ND = frechet_mean(F.normalize(centre_ND, dim=-1), candidates)
        direction_ND = _on_the_sphere(own_ND, centre_ND, lambda_N1)
    if blend.norm == "mask":
        return direction_ND * own_norm_N1
    norm_N1 = candidates.mean_norm()[..., None]
    if blend.norm == "interpolated":
        norm_N1 = (1 - lambda_N1) * own_norm_N1 + lambda_N1 * norm_N1
    return direction_ND * norm_N1


def frechet_mean(start_ND: Tensor, candidates: _Few | _All, *, steps: int = KARCHER_STEPS) -> Tensor:
    """argmin over unit vectors c of sum_k pi_k angle(c, v_k)^2, by Karcher's iteration from unit vectors `start`.

    A step goes from c along the mean of the logarithms, log_c(u) = theta / sin theta (u - cos theta c), u = v / |v|.
    """
    tiny, eps = torch.finfo(start_ND.dtype).tiny, torch.finfo(start_ND.dtype).eps
    centre_ND = start_ND
    for _ in range(steps):
        cosine_NK = candidates.cosines(centre_ND).clamp(-1 + 4 * eps, 1 - 4 * eps)
        theta_NK = torch.acos(cosine_NK)
        weights_NK = candidates.pi_NK * theta_NK / torch.sin(theta_NK)
        mean_ND = candidates.combine(weights_NK, unit=True) - (weights_NK * cosine_NK).sum(-1, keepdim=True) * centre_ND
        length_N1 = (mean_ND.square().sum(-1, keepdim=True) + tiny).sqrt()  # a norm of 0 has no gradient
        moved_ND = torch.cos(length_N1) * centre_ND + torch.sin(length_N1) / length_N1 * mean_ND
        centre_ND = F.normalize(moved_ND, dim=-1)
    return centre_ND


def _on_the_sphere(own_ND: Tensor, other_ND: Tensor, lambda_N1: Tensor) -> Tensor:
    """Unit vectors at the share lambda of the way from one direction to the other."""
    eps = torch.finfo(own_ND.dtype).eps
    a_ND = F.normalize(own_ND, dim=-1)
    b_ND = F.normalize(other_ND, dim=-1)
    cosine_N1 = (a_ND * b_ND).sum(-1, keepdim=True).clamp(-1 + 4 * eps, 1 - 4 * eps)
    theta_N1 = torch.acos(cosine_N1)
    way_ND = torch.sin((1 - lambda_N1) * theta_N1) * a_ND + torch.sin(lambda_N1 * theta_N1) * b_ND
    return way_ND / torch.sin(theta_N1)


def _dense_rows(weight_VD: Tensor, own_CD: Tensor, lambda_C: Tensor, logits_CV: Tensor, blend: Blend) -> Tensor:
    return _blend(own_CD, lambda_C, _All(weight_VD, logits_CV.softmax(-1).to(weight_VD.dtype)), blend)


def _dense(weight_VD: Tensor, mixture: DenseMixture, blend: Blend) -> Tensor:
    embedded_BLD = F.embedding(mixture.ids_BL, weight_VD)
    flat_MD = embedded_BLD.reshape(-1, embedded_BLD.shape[-1])
    rows = []
    for start in range(0, mixture.positions_N.shape[0], _DENSE_ROWS):
        chunk = slice(start, start + _DENSE_ROWS)
        own_CD = flat_MD.index_select(0, mixture.positions_N[chunk])
        soft = (own_CD, mixture.lambda_N[chunk], mixture.logits_NV[chunk])
        rows.append(checkpoint(_dense_rows, weight_VD, *soft, blend, use_reentrant=False))
    if not rows:
        return embedded_BLD
    return flat_MD.index_copy(0, mixture.positions_N, torch.cat(rows)).view_as(embedded_BLD)
