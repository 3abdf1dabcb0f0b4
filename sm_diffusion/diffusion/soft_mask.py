"""Soft-masking: the embedding of a still-masked position becomes a blend of the mask and the predicted tokens.

    lambda(p) = omega_s * sigmoid(omega_a * (-H(p) - omega_b))
    x_l       = (1 - lambda) E[mask] + lambda * sum_{i in top-k(p_l)} pi_i E[i],   pi = p renormalised over the top-k

Hersche et al., arXiv 2510.17206, section 3. H is the entropy in nats over the full vocabulary.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from sm_diffusion.diffusion import omegas
from sm_diffusion.diffusion.contracts import Mixing, Readout
from sm_diffusion.diffusion.metrics import record
from sm_diffusion.diffusion.readouts.base import KeepLogits, Summarize
from sm_diffusion.registry import choice, find, register
from sm_diffusion.types import DenseMixture, LogitsMemory, Memory, TokenMixture

# The published start omega_s = 0 is logit(0) clamped by this much: sigmoid gives 1e-6 (authors' code).
OMEGA_S_EPS = 1e-6
# The authors' code adds this to every softplus, which keeps omega_a, -omega_b and the temperature off zero.
SOFTPLUS_EPS = 1e-6


def confidence(neg_entropy: Tensor, omega_s: Tensor, omega_a: Tensor, omega_b: Tensor) -> Tensor:
    """lambda = omega_s * sigmoid(omega_a * (neg_entropy - omega_b)), elementwise, in [0, omega_s]."""
    found: Tensor = omegas.confidence(neg_entropy, omega_s, omega_a, omega_b, sigmoid=torch.sigmoid)
    return found


def negative_entropy(logits: Tensor) -> Tensor:
    """-H of softmax(logits) over the last axis, nats, <= 0."""
    log_probs = logits.log_softmax(-1)
    return (log_probs.exp() * log_probs).sum(-1)


def remember(logits_BLV: Tensor, top_k: int) -> Memory:
    """Memory of a whole prediction: the plain, differentiable twin of the `Summarize` readout."""
    values_BLK, ids_BLK = logits_BLV.topk(top_k, dim=-1)
    return Memory(ids_BLK, values_BLK.softmax(-1), negative_entropy(logits_BLV))


def _inverse_softplus(value: float) -> float:
    return value + math.log(-math.expm1(-value)) if value > 0 else -1e4


def _raw(value: float, learnable: bool) -> nn.Parameter:
    # Shape (1,): fully_shard refuses scalars.
    return nn.Parameter(torch.tensor([value], dtype=torch.float64).float(), requires_grad=learnable)


class SoftMaskBase(nn.Module, ABC):
    """The three omegas, as raw parameters of shape (1,) behind range maps.

    omega_s = sigmoid(raw)       in [0, 1]   how far a confident position may go; 0 starts at 1e-6 as published
    omega_a = softplus(raw) + 1e-6    > 0   steepness
    omega_b = -softplus(raw) - 1e-6   < 0   the negative entropy (nats) at which lambda is omega_s / 2
    """

    def __init__(self, *, omega_s: float, omega_a: float, omega_b: float, learnable: bool = True) -> None:
        super().__init__()
        if not 0 <= omega_s <= 1:
            raise ValueError(f"omega_s must lie in [0, 1], got {omega_s}")
        if omega_a < 0 or omega_b > 0:
            raise ValueError(f"omega_a must be >= 0 and omega_b <= 0, got {omega_a} and {omega_b}")
        clamped = min(max(omega_s, OMEGA_S_EPS), 1 - OMEGA_S_EPS)
        self.raw_omega_s = _raw(math.log(clamped / (1 - clamped)), learnable)
        self.raw_omega_a = _raw(_inverse_softplus(omega_a), learnable)
        self.raw_omega_b = _raw(_inverse_softplus(-omega_b), learnable)

    @property
    def omega_s(self) -> Tensor:
        return torch.sigmoid(self.raw_omega_s)

    @property
    def omega_a(self) -> Tensor:
        return F.softplus(self.raw_omega_a) + SOFTPLUS_EPS

    @property
    def omega_b(self) -> Tensor:
        return -F.softplus(self.raw_omega_b) - SOFTPLUS_EPS

    def confidence(self, neg_entropy: Tensor, strength: float | Tensor) -> Tensor:
        return confidence(neg_entropy.float(), self.omega_s * strength, self.omega_a, self.omega_b)

    @abstractmethod
    def remember_at(self, positions_N: Tensor) -> Readout:
        """The readout whose result `forward` takes as its memory, for positions (B*L flattened) that stay masked."""

    @abstractmethod
    def forward(
        self, ids_BL: Tensor, memory: Any, mask_id: int, strength: float | Tensor = 1.0
    ) -> TokenMixture | DenseMixture:
        """Soft tokens: masked positions that have a memory are blended, every other keeps its own embedding."""


class SoftMask(SoftMaskBase):
    """Top-k soft-masking, as published: O(B L k). top_k >= 1 tokens are blended."""

    def __init__(self, *, top_k: int, omega_s: float, omega_a: float, omega_b: float, learnable: bool = True) -> None:
        super().__init__(omega_s=omega_s, omega_a=omega_a, omega_b=omega_b, learnable=learnable)
        if top_k < 1:
            raise ValueError(f"top_k must be >= 1, got {top_k}")
        self.top_k = top_k

    def remember_at(self, positions_N: Tensor) -> Readout:
        return Summarize(positions_N, top_k=self.top_k)

    def forward(self, ids_BL: Tensor, memory: Memory, mask_id: int, strength: float | Tensor = 1.0) -> TokenMixture:
        """Blend the masked positions that have a memory; every other position keeps weight 1 on its own token.

        strength: factor on omega_s in [0, 1], from a decode-time schedule; a number, or one a row, (B, 1).
        Returns a mixture of K + 1 tokens: slot 0 is the input id with weight 1 - lambda.
        """
        soft_BL = (ids_BL == mask_id) & (memory.probs_BLK[..., 0] > 0)
        lambda_BL = torch.where(soft_BL, self.confidence(memory.neg_entropy_BL, strength), 0.0)
        record("train/entropy", -memory.neg_entropy_BL, where=soft_BL)
        record("train/lambda", lambda_BL, where=soft_BL)
        ids_BLK = torch.where(soft_BL[..., None], memory.ids_BLK, 0)
        weights_BLK = lambda_BL[..., None] * memory.probs_BLK
        return TokenMixture(
            torch.cat([ids_BL[..., None], ids_BLK], -1), torch.cat([(1 - lambda_BL)[..., None], weights_BLK], -1)
        )


class FullVocabularySoftMask(SoftMaskBase):
    """The "k = |V|" variant: p = softmax(logits / temperature) over the whole vocabulary, temperature learnable.

    temperature = softplus(raw) + 1e-6 > 0. The entropy is that of the tempered distribution. Costs O(N V).
    """

    def __init__(
        self, *, temperature: float, omega_s: float, omega_a: float, omega_b: float, learnable: bool = True
    ) -> None:
        super().__init__(omega_s=omega_s, omega_a=omega_a, omega_b=omega_b, learnable=learnable)
        if temperature <= 0:
            raise ValueError(f"temperature must be > 0, got {temperature}")
        self.raw_temperature = _raw(_inverse_softplus(temperature), learnable)

    def remember_at(self, positions_N: Tensor) -> Readout:
        return KeepLogits(positions_N)

    @property
    def temperature(self) -> Tensor:
        return F.softplus(self.raw_temperature) + SOFTPLUS_EPS

    def forward(
        self, ids_BL: Tensor, memory: LogitsMemory, mask_id: int, strength: float | Tensor = 1.0
    ) -> DenseMixture:
        if isinstance(strength, Tensor):
            strength = strength.expand(ids_BL.shape).flatten()[memory.positions_N]
        soft_N = ids_BL.flatten()[memory.positions_N] == mask_id
        logits_NV = memory.logits_NV / self.temperature
        # Recomputed in the backward pass: the log-softmax of (N, V) is not kept.
        neg_entropy_N = checkpoint(negative_entropy, logits_NV, use_reentrant=False)
        lambda_N = torch.where(soft_N, self.confidence(neg_entropy_N, strength), 0.0)
        record("train/entropy", -neg_entropy_N, where=soft_N)
        record("train/lambda", lambda_N, where=soft_N)
        return DenseMixture(ids_BL, memory.positions_N, lambda_N, logits_NV)


class SoftMaskSettings(ABC):
    """What a user chooses as `soft_mask`: a dataclass that builds a `SoftMaskBase`, with a field `mixing`."""

    mixing: str

    @abstractmethod
    def build(self) -> SoftMaskBase:
        """The omegas where training starts."""

    def build_mixing(self) -> Mixing:
        """How the tokens it weighs become one vector."""
        found: Mixing = find("mixing", self.mixing, key="soft_mask.mixing")
        return found

    @abstractmethod
    def problems_with_vocabulary(self, vocab_size: int) -> Iterator[str]:
        """What can only be said once the tokenizer is known."""


@register("soft_mask", "soft_mask")
@dataclass(frozen=True, kw_only=True)
class PublishedSoftMask(SoftMaskSettings):
    """lambda(p) = omega_s * sigmoid(omega_a * (-H(p) - omega_b)), H in nats. Values are where training starts."""

    omega_s: float = 0.0  # in [0, 1]; 0 starts at 1e-6, as published
    omega_a: float = 6.66  # >= 0
    omega_b: float = -0.75  # <= 0, nats
    learnable: bool = True
    top_k: int = 3  # tokens that are blended, 1 <= top_k < vocabulary
    full_vocabulary: bool = False  # blend the whole vocabulary with a learnable temperature instead of the top-k
    temperature: float = 1.0  # > 0; used with full_vocabulary only
    mixing: str = choice("mixing", "linear")  # linear: the paper's; spherical keeps the norm

    def problems(self) -> Iterator[str]:
        if not 0 <= self.omega_s <= 1:
            yield f"soft_mask.omega_s={self.omega_s}: must lie in [0, 1]; 0 is the published start"
        if self.omega_a < 0:
            yield f"soft_mask.omega_a={self.omega_a}: must be >= 0; the published start is 6.66"
        if self.omega_b > 0:
            yield (
                f"soft_mask.omega_b={self.omega_b}: must be <= 0 (a negative entropy, nats); "
                "the published start is -0.75"
            )
        if self.top_k < 1:
            yield f"soft_mask.top_k={self.top_k}: must be >= 1; the paper uses 3 for text and 1 for code"
        if not self.temperature > 0:
            yield f"soft_mask.temperature={self.temperature}: must be positive"

    def problems_with_vocabulary(self, vocab_size: int) -> Iterator[str]:
        if not self.full_vocabulary and self.top_k >= vocab_size:
            yield (
                f"soft_mask.top_k={self.top_k}: the vocabulary has {vocab_size - 1} tokens beside the mask; "
                f"set soft_mask.top_k to at most {vocab_size - 1}"
            )

    def build(self) -> SoftMaskBase:
        omegas = {"omega_s": self.omega_s, "omega_a": self.omega_a, "omega_b": self.omega_b}
        if self.full_vocabulary:
            return FullVocabularySoftMask(temperature=self.temperature, learnable=self.learnable, **omegas)
        return SoftMask(top_k=self.top_k, learnable=self.learnable, **omegas)


class StrengthSchedule(ABC):
    """Decode-time factor on omega_s as a function of diffusion time (1 at the first step, 0 at the last)."""

    @abstractmethod
    def __call__(self, t: float) -> float: ...


class ConstantStrength(StrengthSchedule):
    """omega_s as trained."""

    def __call__(self, t: float) -> float:
        return 1.0


class LinearStrength(StrengthSchedule):
    """omega_s * t: soft-masking fades out as the text becomes clean."""

    def __call__(self, t: float) -> float:
        return min(max(t, 0.0), 1.0)


class StepwiseStrength(StrengthSchedule):
    """omega_s while t > threshold, else 0; for orders by confidence t is the share of a text that is still masked.

    Source: IBM coding/patches/dream_sm.patch:215-238, `get_time_dependence` (threshold 0.5 there). The authors' mixing
    then raises an error once the factor is 0; here the masks are plain ones.
    """

    def __init__(self, *, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def __call__(self, t: float) -> float:
        return 1.0 if t > self.threshold else 0.0


class StairsStrength(StrengthSchedule):
    """omega_s * ceil(t * num_levels) / num_levels: the linear fade in equal steps."""

    def __init__(self, *, num_levels: int) -> None:
        if num_levels < 1:
            raise ValueError(f"num_levels must be >= 1, got {num_levels}")
        self.num_levels = num_levels

    def __call__(self, t: float) -> float:
        return math.ceil(min(max(t, 0.0), 1.0) * self.num_levels) / self.num_levels


class WindowStrength(StrengthSchedule):
    """omega_s while t_until < t <= t_from, plain masks outside: soft-masking in the early or the late steps only.

    The paper's table 11 (Dream, decoding): the first 80 % are (t_from=1, t_until=0.2), the last 80 % (0.8, 0).
    """

    def __init__(self, *, t_from: float, t_until: float) -> None:
        if not 0 <= t_until < t_from <= 1:
            raise ValueError(f"must satisfy 0 <= t_until < t_from <= 1, got t_until={t_until}, t_from={t_from}")
        self.t_from = t_from
        self.t_until = t_until

    def __call__(self, t: float) -> float:
        return 1.0 if self.t_until < t <= self.t_from else 0.0
