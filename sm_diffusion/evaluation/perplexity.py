"""Perplexity from the diffusion bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric

from sm_diffusion.evaluation.base import EvalContext, EvalResult, Evaluator
from sm_diffusion.types import LossOutput, UserError


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


def perplexity_metrics(nll: float, bytes_per_token: float) -> dict[str, float]:
    """nll (nats a token), ppl = exp(nll), bits_per_token = nll / ln 2, bits_per_byte over the text's UTF-8 bytes."""
    bits = nll / math.log(2)
    return {
        "nll": nll,
        "ppl": math.exp(nll) if nll < 700 else math.inf,
        "bits_per_token": bits,
        "bits_per_byte": bits / bytes_per_token,
    }


class PerplexityEvaluator(Evaluator):
    """Validation perplexity at a fixed seed; for a model with a memory also without feedback (one pass).

    feedback: None reports both where both exist; True or False reports that one alone.
    repeats:  independent noise seeds; the mean is reported, and the standard deviation when there are several.
    """

    def __init__(self, *, feedback: bool | None, repeats: int) -> None:
        self.feedback = feedback
        self.repeats = repeats

    def evaluate(self, context: EvalContext) -> EvalResult:
        has_memory = context.predictor.may_skip_parameters
        if self.feedback and not has_memory:
            raise UserError("evaluator.feedback=true: this checkpoint is a plain MDLM without memory; leave it out")
        metrics: dict[str, float] = {}
        for feedback, suffix in ((True, ""), (False, "_without_feedback")):
            if self.feedback not in (None, feedback) or (not has_memory and suffix and self.feedback is None):
                continue
            runs = [context.measure_nll(feedback, context.seed + k) for k in range(self.repeats)]
            nll = sum(runs) / len(runs)
            found = perplexity_metrics(nll, context.bytes_per_token)
            metrics |= {f"val/{name}{suffix}": value for name, value in found.items()}
            if self.repeats > 1:
                metrics[f"val/nll_std{suffix}"] = float(torch.tensor(runs, dtype=torch.float64).std())
        return EvalResult(metrics=metrics, protocol={"seed": context.seed, "repeats": self.repeats})
