"""The mean negative log-likelihood of tokens, over batches and processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

from sm_diffusion.types import LossOutput


class TokenNLL(Metric):
    """Token-weighted mean negative log-likelihood (nats), summed in float64 and synchronised over ranks.

    The mean over all tokens of all ranks, never a mean of batch means: batches and ranks may differ in size.
    """

    full_state_update = False
    nll_sum: Tensor
    num_tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nll_sum", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("num_tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, out: LossOutput) -> None:
        self.nll_sum += out.nll_sum.detach().to(self.nll_sum.dtype)
        self.num_tokens += out.num_tokens.detach().to(self.num_tokens.dtype)

    def compute(self) -> Tensor:
        return self.nll_sum / self.num_tokens
