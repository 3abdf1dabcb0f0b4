"""What an evaluator is: given a loaded model and its corpus, it returns named numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sm_diffusion.diffusion.predictor import Predictor


@dataclass(frozen=True, kw_only=True)
class EvalContext:
    """What evaluators work with.

    predictor:       the network, weights in place.
    measure_nll:     (feedback, seed) -> token-weighted mean NLL of the validation split in nats, over all ranks.
    bytes_per_token: UTF-8 bytes of the validation text for each token.
    seed:            of every random choice of the evaluation.
    """

    predictor: Predictor
    measure_nll: Callable[[bool, int], float]
    bytes_per_token: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """metrics: flat name -> number. protocol: the settings another person needs to get the same numbers.
    scores: rows of a table, each with a protocol of its own; empty for evaluators without one.
    """

    metrics: dict[str, float]
    protocol: dict[str, Any] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(default_factory=list)


class Evaluator(ABC):
    """One kind of score."""

    @abstractmethod
    def evaluate(self, context: EvalContext) -> EvalResult: ...
