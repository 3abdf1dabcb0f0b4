"""The three omegas and lambda, without torch: one formula for the network, reports and figures.

One quantity, and what it is called where:

    raw_omega_s           the parameter of the network and of checkpoints, any real number; omega_s = sigmoid(raw)
    omega_s               the value in [0, 1]: `soft_mask.omega_s` of a configuration, `omegas` of results.json
    omega/s               logged by the step (metrics.csv, W&B)
    omegas/omega_s        column of tables and key of W&B summaries: the last value of a run
    transparency_scale    in the file of a published adapter (denoisers/adapters/transparency.py)

and so for omega_a >= 0 (`transparency_steepness`) and omega_b <= 0, nats (`transparency_centre`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple


def confidence(neg_entropy: Any, omega_s: Any, omega_a: Any, omega_b: Any, *, sigmoid: Callable[[Any], Any]) -> Any:
    """lambda = omega_s * sigmoid(omega_a * (-H - omega_b)), in [0, omega_s].

    Hersche et al., arXiv 2510.17206, section 3. Numbers or tensors, as `sigmoid` takes them.
    """
    return omega_s * sigmoid(omega_a * (neg_entropy - omega_b))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(min(-value, 700.0)))  # exp overflows above 709


class Omegas(NamedTuple):
    """omega_s in [0, 1], omega_a >= 0, omega_b <= 0 (nats)."""

    omega_s: float
    omega_a: float
    omega_b: float

    def strength(self, entropy: float) -> float:
        """lambda at entropy H >= 0, nats."""
        return float(confidence(-entropy, *self, sigmoid=_sigmoid))
