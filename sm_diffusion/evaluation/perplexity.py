"""Perplexity from the diffusion bound."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from sm_diffusion.evaluation.base import EvalContext, EvalResult, Evaluator, not_positive
from sm_diffusion.registry import register
from sm_diffusion.types import UserError


def perplexity_metrics(nll: float, bytes_per_token: float) -> dict[str, float]:
    """nll (nats a token), ppl = exp(nll), bits_per_token = nll / ln 2, bits_per_byte over the text's UTF-8 bytes."""
    bits = nll / math.log(2)
    return {
        "nll": nll,
        "ppl": math.exp(nll) if nll < 700 else math.inf,
        "bits_per_token": bits,
        "bits_per_byte": bits / bytes_per_token,
    }


def readings(context: EvalContext, feedback: bool | None) -> list[tuple[bool, str]]:
    """(feedback, suffix of the metrics): a model with a memory is also read without feedback, in one pass.

    feedback: None: both where both exist; True or False: that one alone. UserError where it does not exist.
    """
    has_memory = context.model.predictor.may_skip_parameters
    if feedback and not has_memory:
        raise UserError("evaluator.feedback=true: this checkpoint is a plain MDLM without memory; leave it out")
    return [
        (reading, suffix)
        for reading, suffix in ((True, ""), (False, "_without_feedback"))
        if feedback in (None, reading) and (has_memory or not suffix or feedback is not None)
    ]


class PerplexityEvaluator(Evaluator):
    """Validation perplexity at a fixed seed; for a model with a memory also without feedback (one pass).
    Of a fine-tuned model `val/finetuning_loss`, which is no bound on the likelihood.

    feedback:      None reports both where both exist; True or False reports that one alone.
    max_sequences: of the validation split; None: all.
    repeats:       independent noise seeds; the mean is reported, and the standard deviation when there are several.
    """

    def __init__(self, *, feedback: bool | None, max_sequences: int | None, repeats: int) -> None:
        self.feedback = feedback
        self.max_sequences = max_sequences
        self.repeats = repeats

    def evaluate(self, context: EvalContext) -> EvalResult:
        wanted = readings(context, self.feedback)
        text = context.validation(self.max_sequences)
        metrics: dict[str, float] = {}
        for feedback, suffix in wanted:
            runs = [text.nll(feedback, context.seed + k) for k in range(self.repeats)]
            nll, name = sum(runs) / len(runs), "nll" if text.is_bound else "finetuning_loss"
            found = perplexity_metrics(nll, text.bytes_per_token) if text.is_bound else {name: nll}
            metrics |= {f"val/{key}{suffix}": value for key, value in found.items()}
            if self.repeats > 1:
                metrics[f"val/{name}_std{suffix}"] = statistics.stdev(runs)
        return EvalResult(metrics=metrics, protocol={"seed": context.seed, "repeats": self.repeats})


@register("evaluator", "perplexity")
@dataclass
class PerplexitySettings:
    """Validation perplexity: the ELBO's token-weighted mean at a fixed seed."""

    feedback: bool | None = None  # two passes; null: as the variant validates
    max_sequences: int | None = None  # null: all
    repeats: int = 1  # independent noise seeds whose mean is reported

    def problems(self) -> Iterator[str]:
        yield from not_positive(self, "repeats", "max_sequences")

    def build(self, context: EvalContext) -> Evaluator:
        return PerplexityEvaluator(
            feedback=self.feedback, max_sequences=self.max_sequences, repeats=self.repeats
        )
