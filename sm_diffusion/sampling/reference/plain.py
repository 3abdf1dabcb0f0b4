"""The plain sampler, as the field writes it: the slow twin of the loop, for tests and benchmarks. O(B L V) throughout.

Every step holds the full (B, L, V) log-probabilities, probabilities, sorted nucleus, transition and Gumbel noise, the
last ones in float64, and draws at every position, kept tokens included.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.diffusion.predictor import Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.readouts.base import Logits
from sm_diffusion.diffusion.soft_mask import SoftMask, remember
from sm_diffusion.sampling.orders.ancestral import Rates, TransitionPolicy, transition_probs
from sm_diffusion.sampling.orders.base import State
from sm_diffusion.sampling.reference.published import exponential


def plain_log_probs(predictor: Predictor, ids_BL: Tensor, memory: Any) -> Tensor:
    """log p(x_0 | x_t) after SUBS, (B, L, V): one-hot at tokens."""
    logits_BLV: Tensor = predictor(ids_BL, memory, Logits())
    return Subs(predictor.mask_id).log_probs(logits_BLV, ids_BL)


def plain_memory(predictor: Predictor, log_probs_BLV: Tensor) -> Any:
    """What is fed back: nothing, or the top-k and entropy of the whole prediction."""
    if not isinstance(predictor, SoftMaskPredictor):
        return None
    assert isinstance(predictor.soft_mask, SoftMask), "the plain sampler knows the top-k soft mask only"
    return remember(log_probs_BLV, predictor.soft_mask.top_k)


def plain_nucleus(p_BLV: Tensor, top_p: float) -> Tensor:
    """Sort, cumulate, keep <= top_p and the first, scatter back, renormalise."""
    if top_p >= 1:
        return p_BLV
    sorted_BLV, order_BLV = p_BLV.sort(dim=-1, descending=True)
    kept_BLV = sorted_BLV.cumsum(-1) <= top_p
    kept_BLV[..., 0] = True
    sorted_BLV = sorted_BLV * kept_BLV
    sorted_BLV /= sorted_BLV.sum(-1, keepdim=True)
    return torch.zeros_like(p_BLV).scatter_(-1, order_BLV, sorted_BLV)


def plain_transition(p_BLV: Tensor, rates: Rates, masked_BL: Tensor, mask_id: int) -> Tensor:
    """q(x_s | x_t) in float64, rows sum to 1."""
    q_BLV = transition_probs(p_BLV.double(), rates, masked_BL, mask_id)
    return q_BLV / q_BLV.sum(-1, keepdim=True)


def plain_sample(
    predictor: Predictor, policy: TransitionPolicy, ids_BL: Tensor, *, top_p: float, generator: torch.Generator
) -> Tensor:
    """Run all steps and the noise-removal pass on a canvas without padding; every position may be re-masked."""
    memory: Any = None
    mask_id = predictor.mask_id
    with torch.no_grad():
        for step in range(policy.grid.num_steps):
            masked_BL = ids_BL == mask_id
            nothing_BL = torch.full(ids_BL.shape, -torch.inf, dtype=torch.float64)
            state = State(
                ids_BL=ids_BL,
                open_BL=torch.ones_like(masked_BL),
                masked_BL=masked_BL,
                confidence_BL=nothing_BL,
                time_B=torch.ones(len(ids_BL), dtype=torch.float64),
                step=step,
            )
            log_probs_BLV = plain_log_probs(predictor, ids_BL, memory)
            memory = plain_memory(predictor, log_probs_BLV)
            p_BLV = plain_nucleus(log_probs_BLV.exp(), top_p)
            q_BLV = plain_transition(p_BLV, policy.rates(state), masked_BL, mask_id)
            uniform_BLV = torch.rand(q_BLV.shape, generator=generator, dtype=torch.float64)
            ids_BL = (q_BLV / exponential(uniform_BLV)).argmax(-1)
        return plain_log_probs(predictor, ids_BL, memory).argmax(-1)
