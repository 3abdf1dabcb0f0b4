"""Readouts: what is taken from the last hidden states, at selected positions, one chunk of logits at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from sm_diffusion.diffusion.contracts import Head
from sm_diffusion.diffusion.readouts import chunked
from sm_diffusion.types import NLL, LogitsMemory, Memory


def positions_of(select_BL: Tensor) -> Tensor:
    """int64 indices, into the flattened B*L, of the True positions; (N,)."""
    return select_BL.flatten().nonzero().squeeze(1)


def _select(hidden_BLD: Tensor, positions_N: Tensor) -> Tensor:
    return hidden_BLD.reshape(-1, hidden_BLD.shape[-1]).index_select(0, positions_N)


class NegLogLikelihood:
    """Weighted negative log-likelihood of the targets at N positions; never more than one chunk of logits.

    total = sum_n weights_n * (-log p_n(targets_n)).
    """

    def __init__(self, positions_N: Tensor, targets_N: Tensor, weights_N: Tensor) -> None:
        self.positions_N = positions_N
        self.targets_N = targets_N
        self.weights_N = weights_N

    def __call__(self, hidden_BLD: Tensor, head: Head) -> NLL:
        hidden_ND = _select(hidden_BLD, self.positions_N)
        if not torch.is_grad_enabled():
            nll_N = chunked.nll_only(hidden_ND, head, self.targets_N)
            return NLL((nll_N * self.weights_N).sum(), nll_N)
        total, nll_N = chunked.ChunkedNLL.apply(  # type: ignore[no-untyped-call]
            hidden_ND, head.weight_VD, head.bias_V, self.targets_N, self.weights_N, head.parameterization
        )
        return NLL(total, nll_N)


class PlainNegLogLikelihood(NegLogLikelihood):
    """The slow twin: full (N, V) logits and autograd. For tests and benchmarks."""

    def __call__(self, hidden_BLD: Tensor, head: Head) -> NLL:
        log_probs_NV = head(_select(hidden_BLD, self.positions_N)).log_softmax(-1)
        nll_N = -log_probs_NV.gather(1, self.targets_N[:, None]).squeeze(1)
        return NLL((nll_N * self.weights_N).sum(), nll_N.detach())


class Summarize:
    """The `Memory` of N positions: top-k and entropy, no gradient. Other positions get an empty memory."""

    def __init__(self, positions_N: Tensor, *, top_k: int) -> None:
        self.positions_N = positions_N
        self.top_k = top_k

    def __call__(self, hidden_BLD: Tensor, head: Head) -> Memory:
        with torch.no_grad():
            hidden_ND = _select(hidden_BLD, self.positions_N)
            return scatter_memory(
                Memory(*chunked.summarize(hidden_ND, head, self.top_k)), self.positions_N, hidden_BLD.shape[:2]
            )


class PlainSummarize(Summarize):
    """The slow twin of `Summarize`: full (N, V) logits."""

    def __call__(self, hidden_BLD: Tensor, head: Head) -> Memory:
        with torch.no_grad():
            logits_NV = head(_select(hidden_BLD, self.positions_N))
            values_NK, ids_NK = logits_NV.topk(self.top_k, dim=-1)
            log_probs_NV = logits_NV.log_softmax(-1)
            neg_entropy_N = (log_probs_NV.exp() * log_probs_NV).sum(-1)
            return scatter_memory(
                Memory(ids_NK, values_NK.softmax(-1), neg_entropy_N), self.positions_N, hidden_BLD.shape[:2]
            )


class KeepLogits:
    """The whole distribution at N positions, O(N V), no gradient: for the full-vocabulary soft mask only."""

    def __init__(self, positions_N: Tensor) -> None:
        self.positions_N = positions_N

    def __call__(self, hidden_BLD: Tensor, head: Head) -> LogitsMemory:
        with torch.no_grad():
            return LogitsMemory(self.positions_N, head(_select(hidden_BLD, self.positions_N)))


class Logits:
    """The full (B, L, V) tensor, with gradients: for tests and small uses."""

    def __call__(self, hidden_BLD: Tensor, head: Head) -> Tensor:
        return head(hidden_BLD)


def scatter_memory(memory: Memory, positions_N: Tensor, shape: torch.Size) -> Memory:
    """Spread the (N, K) parts of a memory over (B, L, K); positions without one hold zeros."""
    num_positions = shape[0] * shape[1]
    ids_MK = memory.ids_BLK.new_zeros(num_positions, memory.ids_BLK.shape[-1])
    probs_MK = memory.probs_BLK.new_zeros(num_positions, memory.probs_BLK.shape[-1])
    neg_entropy_M = memory.neg_entropy_BL.new_zeros(num_positions)
    ids_MK[positions_N] = memory.ids_BLK
    probs_MK[positions_N] = memory.probs_BLK
    neg_entropy_M[positions_N] = memory.neg_entropy_BL
    return Memory(ids_MK.view(*shape, -1), probs_MK.view(*shape, -1), neg_entropy_M.view(shape))
