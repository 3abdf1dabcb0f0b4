"""From logits to a token: temperature, nucleus, top-k, a draw, and how sure the model was of it.

Everything works on one chunk of rows at a time and only where a token is drawn. The uniform numbers and the sums of
probabilities are float64: float32 Gumbel noise truncates the tail and so lowers the temperature (Zheng et al.,
arXiv 2409.02908, section 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sm_diffusion.diffusion.readouts.chunked import row_dots
from sm_diffusion.diffusion.readouts.scratch import GROUP
from sm_diffusion.registry import register
from sm_diffusion.types import UserError

_SORT_ROWS = 32  # rows sorted at once: a sorted copy of a whole chunk would double it


class Drawer(Protocol):
    """Picks one column of every row of probabilities."""

    def __call__(self, p_CV: Tensor, positions_C: Tensor) -> Tensor:
        """int64 (C,). positions_C: index of each row into the flattened B*L of the whole batch."""


class Measure(Protocol):
    """How sure the model is of a token: larger is surer. float64 (C,)."""

    def __call__(self, p_CV: Tensor, ids_C: Tensor, positions_C: Tensor) -> Tensor: ...


def sort_descending(p_CV: Tensor) -> Tensor:
    """Values of each row, largest first. numpy's vectorised sort is 20 times faster than torch's on the CPU."""
    if p_CV.device.type == "cpu":
        return torch.from_numpy(np.sort(p_CV.numpy(), axis=-1)).flip(-1)
    return p_CV.sort(dim=-1, descending=True).values


def nucleus_(p_CV: Tensor, top_p: float, *, keep_crossing: bool = False) -> None:
    """Zero, in place, the tokens outside the nucleus of each row; not renormalised.

    With tokens sorted by probability, the nucleus holds those whose cumulative mass (their own included) is <= top_p,
    and always the first (MDLM's and ReMDM's code: the token that crosses top_p is dropped). keep_crossing: those whose
    mass BEFORE them is <= top_p (Holtzman et al. 2019; Dream). Of tied tokens at the border the first ids are kept.
    """
    for start in range(0, p_CV.shape[0], _SORT_ROWS):
        part_CV = p_CV[start : start + _SORT_ROWS]
        sorted_CV = sort_descending(part_CV)
        # The first column whose cumulative mass exceeds top_p, so as many columns are inside.
        inside_C = inverse_cdf(sorted_CV, torch.full_like(sorted_CV[:, 0], top_p, dtype=torch.float64))
        count_C = (inside_C + 1).clamp_max(p_CV.shape[1]) if keep_crossing else inside_C.clamp_min(1)
        _keep_largest_(part_CV, sorted_CV, count_C)


def _keep_largest_(p_CV: Tensor, sorted_CV: Tensor, count_C: Tensor) -> None:
    """Zero all but the count_C largest of each row; ties are broken by column."""
    threshold_C1 = sorted_CV.gather(1, count_C[:, None] - 1)
    following_C1 = sorted_CV.gather(1, count_C[:, None].clamp_max(p_CV.shape[1] - 1))
    kept_CV = p_CV >= threshold_C1
    tied_C = ((following_C1 == threshold_C1) & (threshold_C1 > 0)).squeeze(1) & (count_C < p_CV.shape[1])
    if bool(tied_C.any()):
        ties_CV = p_CV == threshold_C1
        room_C1 = count_C[:, None] - (p_CV > threshold_C1).sum(-1, keepdim=True)
        kept_CV &= ~ties_CV | (ties_CV.cumsum(-1) <= room_C1)
    p_CV.mul_(kept_CV)


@dataclass(frozen=True, kw_only=True)
class TokenSampling:
    """Which distribution tokens are drawn from. Feedback never sees it: memories hold the untruncated prediction.

    temperature:   > 0 divides the logits; 0 takes the most probable token (no draw).
    top_p:         in (0, 1]; nucleus, 1 keeps all.
    top_k:         >= 1 keeps that many tokens, applied after the nucleus as in Dream; None keeps all.
    keep_crossing: the nucleus includes the token that crosses top_p (Dream); False: it does not (MDLM, ReMDM).
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    keep_crossing: bool = False

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(f"sampler.temperature={self.temperature}: must be >= 0 (0: the most probable token)")
        if not 0 < self.top_p <= 1:
            raise UserError(f"sampler.top_p={self.top_p}: must lie in (0, 1]")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"sampler.top_k={self.top_k}: must be >= 1, or null to keep all tokens")

    def probabilities_(self, logits_CV: Tensor) -> Tensor:
        """Probabilities after temperature, nucleus and top-k, normalised, float32, in the memory of the logits."""
        if self.temperature not in (0.0, 1.0):
            logits_CV.div_(self.temperature)
        p_CV = torch.softmax(logits_CV, -1, out=logits_CV)
        if self.top_p < 1:
            nucleus_(p_CV, self.top_p, keep_crossing=self.keep_crossing)
        if self.top_k is not None and self.top_k < p_CV.shape[1]:
            p_CV.masked_fill_(p_CV < p_CV.topk(self.top_k, dim=-1).values[:, -1:], 0)
        if self.top_p < 1 or self.top_k is not None:
            p_CV.div_(p_CV.sum(-1, keepdim=True))
        return p_CV


def inverse_cdf(p_CV: Tensor, uniform_C: Tensor) -> Tensor:
    """Column v with CDF(v - 1) <= u < CDF(v): a categorical draw, exact in float64 given the probabilities.

    p_CV:      float32 >= 0, need not be normalised. uniform_C: float64 in [0, 1).

    Two levels: the group of GROUP columns by the groups' masses, then the column within it, so a draw costs one
    vectorised pass and no (C, V) float64 tensor. A column of probability zero is never drawn.
    """
    width = p_CV.shape[1]
    if width % GROUP:
        p_CV = torch.nn.functional.pad(p_CV, (0, GROUP - width % GROUP))
    groups_CGS = p_CV.view(p_CV.shape[0], -1, GROUP)
    cdf_CG = _group_mass(groups_CGS).cumsum(-1)
    group_C, rest_C = _search(cdf_CG, uniform_C)
    columns_CS = groups_CGS.gather(1, group_C[:, None, None].expand(-1, 1, GROUP)).squeeze(1)
    column_C, _ = _search(columns_CS.double().cumsum(-1), rest_C)
    return group_C * GROUP + column_C


def _group_mass(groups_CGS: Tensor) -> Tensor:
    """Sums over the last axis, float64. On the CPU a product with ones is 50 times faster than a short-axis sum."""
    if groups_CGS.device.type == "cpu":
        ones_S = torch.ones(groups_CGS.shape[-1])
        return torch.mv(groups_CGS.reshape(-1, groups_CGS.shape[-1]), ones_S).view(groups_CGS.shape[:2]).double()
    return groups_CGS.sum(-1, dtype=torch.float64)


def _search(cdf_CG: Tensor, uniform_C: Tensor) -> tuple[Tensor, Tensor]:
    """(the first index whose cumulative mass exceeds u * total, the position of u * total inside it, in [0, 1])."""
    total_C = cdf_CG[:, -1]
    below_total_C = torch.nextafter(total_C, torch.zeros_like(total_C))
    target_C = torch.minimum(uniform_C * total_C, below_total_C)
    index_C = torch.searchsorted(cdf_CG, target_C[:, None], right=True).squeeze(1)
    upper_C = cdf_CG.gather(1, index_C[:, None]).squeeze(1)
    lower_C = torch.where(index_C > 0, cdf_CG.gather(1, (index_C - 1).clamp_min(0)[:, None]).squeeze(1), 0.0)
    return index_C, (target_C - lower_C) / (upper_C - lower_C)


class InverseCdf:
    """One float64 uniform number a position."""

    def __init__(self, uniform_BL: Tensor) -> None:
        self.uniform_M = uniform_BL.flatten()

    def __call__(self, p_CV: Tensor, positions_C: Tensor) -> Tensor:
        return inverse_cdf(p_CV, self.uniform_M[positions_C])


class MostProbable:
    """The most probable token; ties go to the first id."""

    def __call__(self, p_CV: Tensor, positions_C: Tensor) -> Tensor:
        return p_CV.argmax(-1)


@register("measure", "probability")
class DrawnProbability:
    """p(token): "top probability", Dream's maskgit_plus; what ReMDM-conf remembers."""

    def __call__(self, p_CV: Tensor, ids_C: Tensor, positions_C: Tensor) -> Tensor:
        return p_CV.gather(1, ids_C[:, None]).squeeze(1).double()


@register("measure", "margin")
class Margin:
    """Probability of the first token minus that of the second (Dream's topk_margin)."""

    def __call__(self, p_CV: Tensor, ids_C: Tensor, positions_C: Tensor) -> Tensor:
        top_C2 = p_CV.topk(2, dim=-1).values.double()
        return top_C2[:, 0] - top_C2[:, 1]


@register("measure", "entropy")
class NegEntropy:
    """sum p log(p + 1e-10) of the distribution drawn from, nats (Dream's entropy order, with its 1e-10)."""

    def __call__(self, p_CV: Tensor, ids_C: Tensor, positions_C: Tensor) -> Tensor:
        return row_dots(p_CV, (p_CV + 1e-10).log()).double()


class SampleRule:
    """The `TokenRule` of sampling: probabilities, then a draw, then its measure.

    full_M: int64, maps an index into the flattened positions of the rows that are run to one of the whole batch, which
            is how drawers and measures address their random numbers.
    """

    def __init__(self, sampling: TokenSampling, drawer: Drawer, measure: Measure | None, full_M: Tensor) -> None:
        self.sampling = sampling
        self.drawer = drawer
        self.measure = measure
        self.full_M = full_M

    def __call__(self, logits_CV: Tensor, positions_C: Tensor) -> tuple[Tensor, Tensor]:
        full_C = self.full_M[positions_C]
        p_CV = self.sampling.probabilities_(logits_CV)
        ids_C = self.drawer(p_CV, full_C)
        if self.measure is None:
            return ids_C, torch.zeros(ids_C.shape, dtype=torch.float64, device=ids_C.device)
        return ids_C, self.measure(p_CV, ids_C, full_C)
