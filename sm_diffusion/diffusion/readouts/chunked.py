"""Kernels over one chunk of logits at a time: the (N, V) tensor never exists.

A 50k or 152k vocabulary makes the logits the largest tensor of the program. Every function here walks over the rows
in chunks that fit a small scratch buffer, and takes from each chunk all it needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sm_diffusion.diffusion.contracts import Head, autocast_dtype
from sm_diffusion.diffusion.parameterization import NEGATIVE, Parameterization
from sm_diffusion.diffusion.readouts.scratch import GROUP, Scratch, borrowed

_EXP_ROWS = 4096  # of the vocabulary; with 256 columns beside each other 4 MB


def group_max(logits_CV: Tensor) -> Tensor:
    """Maxima of GROUP neighbouring columns; (C, V padded / GROUP)."""
    return logits_CV.view(logits_CV.shape[0], -1, GROUP).amax(-1)


def top_k(logits_CV: Tensor, k: int, group_max_CG: Tensor) -> tuple[Tensor, Tensor]:
    """The k largest values of each row and their columns, largest first; equal to torch.topk but for ties.

    The k largest lie in the k groups with the largest maxima, so only k * GROUP columns are searched.
    """
    if group_max_CG.shape[1] <= k:
        values_CK, ids_CK = logits_CV.topk(k, dim=-1)
        return values_CK, ids_CK
    groups_CK = group_max_CG.topk(k, dim=-1).indices
    grouped_CGS = logits_CV.view(logits_CV.shape[0], -1, GROUP)
    candidates_CKS = grouped_CGS.gather(1, groups_CK[..., None].expand(-1, -1, GROUP))
    values_CK, flat_CK = candidates_CKS.flatten(1).topk(k, dim=-1)
    return values_CK, groups_CK.gather(1, flat_CK // GROUP) * GROUP + flat_CK % GROUP


def row_dots(a_CV: Tensor, b_CV: Tensor) -> Tensor:
    """sum_v a[c, v] b[c, v]; (C,). On the CPU a loop of dot products is twice as fast as any batched form."""
    if a_CV.device.type == "cpu":
        return torch.stack([torch.dot(a_V, b_V) for a_V, b_V in zip(a_CV.unbind(0), b_CV.unbind(0), strict=True)])
    return torch.bmm(a_CV.unsqueeze(1), b_CV.unsqueeze(2)).view(-1)


def summarize_rows(logits_CV: Tensor, k: int, probs_buffer_CV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Top-k ids (C, K), renormalised probabilities (C, K) and -H in nats (C,) of one chunk of padded logits.

    probs_buffer_CV: scratch of the same width and at least as many rows; overwritten.
    """
    p_CV = torch.softmax(logits_CV, -1, out=probs_buffer_CV[: logits_CV.shape[0]])
    values_CK, ids_CK = top_k(logits_CV, k, group_max(logits_CV))
    # H = lse - sum p l, and lse = l_max - log p_max.
    p_max_C = p_CV.gather(1, ids_CK[:, :1]).squeeze(1)
    neg_entropy_C = row_dots(p_CV, logits_CV) - values_CK[:, 0] + p_max_C.log()
    return ids_CK, values_CK.softmax(-1), neg_entropy_C.clamp_(max=0)


def summarize(hidden_ND: Tensor, head: Head, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Top-k ids (N, K), their renormalised probabilities (N, K) and -H(p) in nats (N,). No gradient."""
    num_rows = hidden_ND.shape[0]
    ids_NK = torch.empty(num_rows, k, dtype=torch.int64, device=hidden_ND.device)
    probs_NK = torch.empty(num_rows, k, dtype=torch.float32, device=hidden_ND.device)
    neg_entropy_N = torch.empty(num_rows, dtype=torch.float32, device=hidden_ND.device)
    with torch.no_grad():
        chunks = _column_chunks if prefers_columns(head, hidden_ND) else _row_chunks
        for rows, found in chunks(hidden_ND, head, k):
            ids_NK[rows], probs_NK[rows], neg_entropy_N[rows] = found
    return ids_NK, probs_NK, neg_entropy_N


Summary = tuple[Tensor, Tensor, Tensor]


def _row_chunks(hidden_ND: Tensor, head: Head, k: int) -> Iterator[tuple[slice, Summary]]:
    size, device = math.prod(Scratch.size(head, hidden_ND)), hidden_ND.device
    with borrowed(size, device) as logits, borrowed(size, device) as probs:
        scratch = Scratch(head, hidden_ND, logits)
        probs_buffer_CV = probs[:size].view_as(scratch.buffer_CV)
        for rows, hidden_CD in scratch.chunks(hidden_ND):
            yield rows, summarize_rows(scratch.logits(hidden_CD), k, probs_buffer_CV)


def prefers_columns(head: Head, hidden_ND: Tensor) -> bool:
    """Whether logits come out faster as (V, C): float32 on the CPU, where the product W h^T took 46 ms against 80 for
    h W^T (V = 50,258, D = 256, C = 256, two AVX2 cores). Gradients are faster from rows, so only summaries use it."""
    on_cpu = hidden_ND.device.type == "cpu" and autocast_dtype("cpu") is None
    return on_cpu and head.weight_VD.dtype == torch.float32 and hidden_ND.dtype == torch.float32


def _column_chunks(hidden_ND: Tensor, head: Head, k: int) -> Iterator[tuple[slice, Summary]]:
    """The same summaries from (V, C) logits: every pass runs down the vocabulary with the C rows side by side."""
    vocab_size = head.weight_VD.shape[0]
    step, padded = Scratch.size(head, hidden_ND)
    device = hidden_ND.device
    with borrowed(step * padded, device) as logits:
        for start in range(0, hidden_ND.shape[0], step):
            hidden_CD = hidden_ND[start : start + step].detach()
            num_rows = hidden_CD.shape[0]
            # A last, smaller chunk takes the front of the memory, so that its columns lie side by side, too.
            logits_VC = logits[: padded * num_rows].view(padded, num_rows)
            real_VC = logits_VC[:vocab_size]
            torch.mm(head.weight_VD.detach(), hidden_CD.t(), out=real_VC)
            if head.bias_V is not None:
                real_VC.add_(head.bias_V.detach()[:, None])
            head.parameterization.constrain_(real_VC.t())
            logits_VC[vocab_size:] = NEGATIVE
            yield slice(start, start + num_rows), _summarize_columns(logits_VC, k)


def _summarize_columns(logits_VC: Tensor, k: int) -> Summary:
    """As `summarize_rows`, for one (V padded, C) chunk."""
    num_rows = logits_VC.shape[1]
    grouped_GSC = logits_VC.view(-1, GROUP, num_rows)
    group_max_GC = grouped_GSC.amax(1)
    max_C = group_max_GC.amax(0)
    if not (float(max_C.max()) < 70 and float(max_C.min()) > -60):
        # exp() of the logits as they are would leave float32's range: shift every row to a maximum of 0.
        logits_VC.sub_(max_C)
        group_max_GC.sub_(max_C)
    # A slice of the vocabulary at a time: its exponentials stay in the cache, and no second (V, C) buffer is needed.
    exp_SC = logits_VC.new_empty(min(_EXP_ROWS, logits_VC.shape[0]), num_rows)
    total_C, dot_C = torch.zeros_like(max_C), torch.zeros_like(max_C)
    for part_SC in torch.split(logits_VC, _EXP_ROWS):
        part_exp_SC = torch.exp(part_SC, out=exp_SC[: part_SC.shape[0]])
        total_C += part_exp_SC.sum(0)
        dot_C += part_exp_SC.mul_(part_SC).sum(0)
    # -H = sum p l - log sum exp(l), whatever constant l is shifted by.
    neg_entropy_C = dot_C / total_C - total_C.log()
    num_groups = min(k, group_max_GC.shape[0])
    groups_CK = group_max_GC.t().topk(num_groups, dim=-1).indices
    index_KSC = groups_CK.t()[:, None].expand(-1, GROUP, -1)
    candidates_CKS = grouped_GSC.gather(0, index_KSC).permute(2, 0, 1)
    values_CK, flat_CK = candidates_CKS.flatten(1).topk(k, dim=-1)
    ids_CK = groups_CK.gather(1, flat_CK // GROUP) * GROUP + flat_CK % GROUP
    return ids_CK, values_CK.softmax(-1), neg_entropy_C.clamp_(max=0)


def nll_only(hidden_ND: Tensor, head: Head, targets_N: Tensor) -> Tensor:
    """-log p(target), nats, (N,), without gradient."""
    nll_N = torch.empty(hidden_ND.shape[0], dtype=torch.float32, device=hidden_ND.device)
    with torch.no_grad(), borrowed(math.prod(Scratch.size(head, hidden_ND)), hidden_ND.device) as buffer:
        scratch = Scratch(head, hidden_ND, buffer)
        for rows, hidden_CD in scratch.chunks(hidden_ND):
            logits_CV = scratch.logits(hidden_CD)
            log_probs_CV = torch.log_softmax(logits_CV, -1, out=logits_CV)
            nll_N[rows] = -log_probs_CV.gather(1, targets_N[rows, None]).squeeze(1)
    return nll_N


def _nll_and_gradients(
    scratch: Scratch, hidden_ND: Tensor, targets_N: Tensor, weights_N: Tensor, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, tuple[Tensor | None, Tensor | None, Tensor | None]]:
    """-log p(target) of every row, and the gradients of the weighted sum: hidden (N, D), weight (V, D), bias (V,)."""
    needs_hidden, needs_weight, needs_bias = needs
    weight_VD, bias_V = scratch.head.weight_VD, scratch.head.bias_V
    nll_N = torch.empty(hidden_ND.shape[0], dtype=torch.float32, device=hidden_ND.device)
    grad_hidden_ND = torch.empty_like(hidden_ND) if needs_hidden else None
    grad_weight_VD = torch.zeros_like(weight_VD, dtype=torch.float32) if needs_weight else None
    grad_bias_V = None if bias_V is None or not needs_bias else torch.zeros_like(bias_V, dtype=torch.float32)
    for rows, hidden_CD in scratch.chunks(hidden_ND):
        targets_C1, weights_C1 = targets_N[rows, None], weights_N[rows, None].float()
        logits_CV = scratch.logits(hidden_CD)
        target_logit_C1 = logits_CV.gather(1, targets_C1)
        max_C1 = group_max(logits_CV).amax(-1, keepdim=True)
        p_CV = torch.softmax(logits_CV, -1, out=logits_CV)
        # lse = l_max - log p_max: exact where log p(target) itself would underflow.
        nll_N[rows] = (max_C1 - group_max(p_CV).amax(-1, keepdim=True).log() - target_logit_C1).squeeze(1)
        p_CV.scatter_add_(1, targets_C1, torch.full_like(target_logit_C1, -1.0))
        error_CV = p_CV[:, : scratch.vocab_size].to(scratch.dtype)
        if grad_hidden_ND is not None:
            grad_hidden_ND[rows] = torch.mm(error_CV, scratch.weight_VD) * weights_C1
        if grad_weight_VD is not None:
            scaled_CD = (hidden_CD * weights_C1).to(scratch.dtype)
            if scratch.dtype == torch.float32:
                grad_weight_VD.addmm_(error_CV.t(), scaled_CD)
            else:
                grad_weight_VD += torch.mm(error_CV.t(), scaled_CD)
        if grad_bias_V is not None:
            grad_bias_V += torch.mv(error_CV.t(), weights_C1.squeeze(1).to(scratch.dtype))
    return nll_N, (grad_hidden_ND, grad_weight_VD, grad_bias_V)


class ChunkedNLL(torch.autograd.Function):
    """sum_n weight_n * (-log p_n(target_n)), with all gradients made in the forward pass.

    Each chunk's logits are computed once: d logits = weight (p - one-hot) is turned at once into the gradients of the
    hidden states, the head's weight and its bias, so peak memory is O(C V) and no matrix product is repeated.
    Since the weights are known beforehand, the backward pass only scales by the upstream scalar.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        weights_N: Tensor,
        parameterization: Parameterization,
    ) -> tuple[Tensor, Tensor]:
        head = Head(weight_VD, bias_V, parameterization)
        with borrowed(math.prod(Scratch.size(head, hidden_ND)), hidden_ND.device) as buffer:
            nll_N, gradients = _nll_and_gradients(
                Scratch(head, hidden_ND, buffer), hidden_ND, targets_N, weights_N, ctx.needs_input_grad[:3]
            )
        ctx.save_for_backward(*gradients)
        ctx.weight_dtype = weight_VD.dtype
        ctx.mark_non_differentiable(nll_N)
        return (nll_N * weights_N).sum(), nll_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        # Out of place: a second backward over a retained graph must find the saved tensors as they were.
        scaled = [None if grad is None else grad * grad_total for grad in ctx.saved_tensors]
        grad_hidden_ND, grad_weight_VD, grad_bias_V = scaled
        return (
            grad_hidden_ND,
            None if grad_weight_VD is None else grad_weight_VD.to(ctx.weight_dtype),
            None if grad_bias_V is None else grad_bias_V.to(ctx.weight_dtype),
            None,
            None,
            None,
        )
