"""Monte-Carlo likelihood of a continuation given its context: the bound of masked diffusion, with its error.

The context is never masked. For a continuation of n tokens, M the masked ones and l = |M|,

    log p(x | c)  >=  - E_{l ~ U{1..n}} E_{M : |M| = l} [ n / l * sum_{i in M} -log p(x_i | x_{not M}, c) ]      (1)
                   =  - E_{t ~ U(0, 1)} E_{M ~ Bernoulli(t)} [ 1 / t * sum_{i in M} -log p(x_i | x_{not M}, c) ]  (2)

Both are the mean of log p over all orders of unmasking, so they lie below the log of the mean of p. (2) is MDLM's bound
(arXiv 2406.07524, eq. 10), the same for every schedule. (1) is (2) with t integrated out given l, as in LLaDA
(arXiv 2502.09992): its weight is bounded, that of (2) is not. A soft-masking predictor makes its two passes
over the same x_t, which is still one function of x_t: the bound is that of the two-pass model.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.diffusion.readouts.base import NegLogLikelihood, positions_of
from sm_diffusion.diffusion.schedule import NoiseSchedule
from sm_diffusion.files import digest_bytes
from sm_diffusion.sampling import from_rows
from sm_diffusion.types import NLL, UserError

_TAG = 0x4C48 << 48  # keeps these streams apart from those of sampling and training
_MAX_ENUMERATED = 16  # tokens; 65,535 masks


class Passage(NamedTuple):
    """context: ids that are given, may be empty. continuation: ids whose likelihood is wanted, at least one."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class Estimate(NamedTuple):
    """log_prob: the bound, nats, <= 0. standard_error: of its Monte-Carlo mean; 0 where every mask was summed.

    num_evaluated: noised copies of the text that were run through the network.
    """

    log_prob: float
    standard_error: float
    num_evaluated: int


class Plan(NamedTuple):
    """The masks of one continuation.

    masks_KN:  bool.     weights_K: float64, value k is weights_k * sum_{masked} nll.
    shares_K:  float64 in (0, 1], noise level of each.
    exact:     the values are to be summed; else consecutive pairs are two draws of one stratum, to be averaged.
    """

    masks_KN: np.ndarray
    weights_K: np.ndarray
    shares_K: np.ndarray
    exact: bool

    def estimate(self, sums_K: np.ndarray, num_evaluated: int) -> Estimate:
        values_K = self.weights_K * sums_K
        if self.exact:
            return Estimate(-float(values_K.sum()), 0.0, num_evaluated)
        pairs = values_K.reshape(-1, 2)
        # Var(mean over strata of pair means): within a stratum the half squared difference is unbiased.
        error = math.sqrt(float(((pairs[:, 0] - pairs[:, 1]) ** 2).sum()) / 4) / len(pairs)
        return Estimate(-float(values_K.mean()), error, num_evaluated)


class Estimator(ABC):
    """Which masks are evaluated, and how they are weighted. num_samples: even, at least 2."""

    def __init__(self, *, num_samples: int) -> None:
        if num_samples < 2 or num_samples % 2:
            raise UserError(f"mc_samples={num_samples}: must be even and at least 2 (pairs give the standard error)")
        self.num_samples = num_samples

    def strata(self, random: np.random.Generator) -> np.ndarray:
        """Points of [0, 1), (K,): two independent ones in each (K/2)-th of the interval."""
        num_strata = self.num_samples // 2
        starts = np.repeat(np.arange(num_strata), 2)
        return (starts + random.random(self.num_samples)) / num_strata

    @abstractmethod
    def plan(self, num_tokens: int, random: np.random.Generator) -> Plan: ...


class MaskCount(Estimator):
    """Equation (1): l uniform, stratified; exactly l tokens masked. Exact where all masks are no more than the samples.

    The 2^n - 1 masks of a short continuation, such as the letter of a multiple choice, are summed: no Monte Carlo.
    """

    def plan(self, num_tokens: int, random: np.random.Generator) -> Plan:
        if num_tokens <= _MAX_ENUMERATED and 2**num_tokens - 1 <= self.num_samples:
            return every_mask(num_tokens)
        counts_K = 1 + np.floor(self.strata(random) * num_tokens).astype(np.int64).clip(max=num_tokens - 1)
        ranks_KN = random.random((self.num_samples, num_tokens)).argsort(1).argsort(1)
        return Plan(ranks_KN < counts_K[:, None], num_tokens / counts_K, counts_K / num_tokens, exact=False)


class ContinuousTime(Estimator):
    """Equation (2) with t uniform on [t_min, 1], stratified; each token masked with probability t.

    What lies below t_min is left out, about t_min * n * (mean nll of a token with all others given), so the value is
    that much too high. With t_min = 0 the variance is infinite (the mean of 1/t diverges).
    """

    def __init__(self, *, num_samples: int, t_min: float = 1e-3) -> None:
        super().__init__(num_samples=num_samples)
        if not 0 < t_min < 1:
            raise UserError(f"t_min={t_min}: must lie between 0 and 1")
        self.t_min = t_min

    def plan(self, num_tokens: int, random: np.random.Generator) -> Plan:
        t_K = self.t_min + (1 - self.t_min) * self.strata(random)
        masks_KN = random.random((self.num_samples, num_tokens)) < t_K[:, None]
        return Plan(masks_KN, (1 - self.t_min) / t_K, t_K, exact=False)


def every_mask(num_tokens: int) -> Plan:
    """All 2^n - 1 masks with their weights in (1): 1 / (l * (n choose l))."""
    masks_KN = np.array(list(itertools.product([False, True], repeat=num_tokens))[1:])
    counts_K = masks_KN.sum(1)
    weights_K = np.array([1 / (count * math.comb(num_tokens, count)) for count in counts_K.tolist()])
    return Plan(masks_KN, weights_K, counts_K / num_tokens, exact=True)


def noise_level(schedule: NoiseSchedule) -> Callable[[Tensor], Tensor]:
    """sigma = -log(1 - share of masked tokens), no larger than at the schedule's end."""
    least = max(float(schedule.alpha(torch.ones(()))), 1e-3)
    return lambda share_B: -torch.log((1 - share_B).clamp_min(least))


class MonteCarloLikelihood:
    """Estimates the bound of passages, `batch_sequences` noised copies a forward pass.

    The masks of a passage depend on the seed, its context and the length of its continuation, on nothing else: neither
    on its batch nor on its neighbours. Continuations of one context with equally many tokens share their masks, which
    lowers the error of their differences.

    feedback:   spend the first of two passes, where the predictor has a memory.
    max_length: tokens of the longest text, context included.
    sigma:      of the share of masked tokens, for a network that is told its noise level; None: it is not.
    """

    def __init__(
        self,
        predictor: Predictor,
        estimator: Estimator,
        *,
        max_length: int,
        seed: int = 1,
        batch_sequences: int = 16,
        feedback: bool = True,
        sigma: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.predictor = predictor
        self.estimator = estimator
        self.max_length = max_length
        self.seed = seed
        self.batch_sequences = batch_sequences
        self.feedback = feedback
        self.sigma = sigma

    def __call__(
        self, passages: Sequence[Passage], on_done: Callable[[int, Estimate], None] | None = None
    ) -> list[Estimate]:
        """In the order given. on_done: called with index and estimate as soon as a passage is finished.

        Raises UserError for a passage that is longer than the model takes, empty, or holds the mask token.
        """
        for index, passage in enumerate(passages):
            self._check(index, passage)
        found: dict[int, Estimate] = {}
        pending: dict[int, _Pending] = {}
        queue: list[tuple[int, int]] = []  # (passage, row of its distinct masks)

        def flush() -> None:
            self._run([(pending[index], row) for index, row in queue])
            for index in sorted({index for index, _ in queue}):
                if pending[index].complete:
                    found[index] = pending.pop(index).estimate()
                    if on_done is not None:
                        on_done(index, found[index])
            queue.clear()

        # Longest first: what does not fit into memory fails at once, and neighbours need little padding.
        for index in sorted(range(len(passages)), key=lambda i: -len(passages[i].context + passages[i].continuation)):
            pending[index] = _Pending(passages[index], self._plan(passages[index]), by_share=self.sigma is not None)
            for row in range(pending[index].num_rows):
                queue.append((index, row))
                if len(queue) == self.batch_sequences:
                    flush()
        if queue:
            flush()
        for index, rest in pending.items():  # no mask fell: only with continuous time
            found[index] = rest.estimate()
            if on_done is not None:
                on_done(index, found[index])
        return [found[index] for index in range(len(passages))]

    def _check(self, index: int, passage: Passage) -> None:
        mask_id, length = self.predictor.mask_id, len(passage.context) + len(passage.continuation)
        if not passage.continuation:
            raise UserError(f"request {index}: the continuation has no token, there is nothing to score")
        if mask_id in passage.context or mask_id in passage.continuation:
            raise UserError(f"request {index} holds the mask token {mask_id}: remove it from the text")
        if length > self.max_length:
            raise UserError(
                f"request {index} has {len(passage.context)} + {len(passage.continuation)} tokens, the model takes "
                f"{self.max_length}: shorten it"
            )

    def _plan(self, passage: Passage) -> Plan:
        context = digest_bytes(np.array(passage.context, dtype="<i8").tobytes())
        key = [self.seed % 2**64, int.from_bytes(context[:8], "little") ^ _TAG]
        return self.estimator.plan(len(passage.continuation), np.random.Generator(np.random.Philox(key=key)))

    def _run(self, rows: list[tuple[_Pending, int]]) -> None:
        mask_id, device = self.predictor.mask_id, next(self.predictor.parameters()).device
        noised = [pending.noised(row, mask_id) for pending, row in rows]
        canvas = from_rows(noised, mask_id=mask_id, device=device)
        positions_N = positions_of(canvas.open_BL(mask_id))  # row by row, from left to right, as the targets
        targets_N = torch.tensor([i for pending, row in rows for i in pending.targets(row)], device=device)
        conditions = {"attention_mask_BL": canvas.attention_mask_BL, "sigma_B": None}
        if self.sigma is not None:
            shares_B = torch.tensor([pending.share(row) for pending, row in rows], dtype=torch.float64)
            conditions["sigma_B"] = self.sigma(shares_B).float().to(device)
        readout = NegLogLikelihood(positions_N, targets_N, torch.ones(len(targets_N), device=device))
        was_training = self.predictor.training
        self.predictor.eval()
        try:
            with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                memory = self.predictor.bootstrap(canvas.ids_BL, positions_N, feedback=self.feedback, **conditions)
                nll: NLL = self.predictor(canvas.ids_BL, memory, readout, **conditions)
        finally:
            self.predictor.train(was_training)
        row_N = positions_N // canvas.ids_BL.shape[1]
        sums_B = torch.zeros(len(rows), dtype=torch.float64, device=device).index_add(0, row_N, nll.nll_N.double())
        for (pending, row), total in zip(rows, sums_B.tolist(), strict=True):
            pending.sums[row] = total


class _Pending:
    """A passage on its way; equal masks of its plan are evaluated once, empty ones not at all."""

    def __init__(self, passage: Passage, plan: Plan, *, by_share: bool) -> None:
        """by_share: equal masks at different noise levels are different inputs."""
        self.passage = passage
        self.plan = plan
        keys = np.column_stack([plan.masks_KN, plan.shares_K]) if by_share else plan.masks_KN
        _, first, row_of = np.unique(keys, axis=0, return_index=True, return_inverse=True)
        self._row_of = row_of.reshape(-1)
        self._masks = plan.masks_KN[first]
        self._shares = plan.shares_K[first]
        self._rows = np.flatnonzero(self._masks.any(1))
        self.sums: dict[int, float] = {}

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    @property
    def complete(self) -> bool:
        return len(self.sums) == self.num_rows

    def noised(self, row: int, mask_id: int) -> list[int]:
        mask = self._masks[self._rows[row]]
        pairs = zip(self.passage.continuation, mask.tolist(), strict=True)
        return [*self.passage.context, *(mask_id if masked else token for token, masked in pairs)]

    def targets(self, row: int) -> list[int]:
        return list(itertools.compress(self.passage.continuation, self._masks[self._rows[row]].tolist()))

    def share(self, row: int) -> float:
        return float(self._shares[self._rows[row]])

    def estimate(self) -> Estimate:
        sums = np.zeros(len(self._masks))
        sums[self._rows] = [self.sums[row] for row in range(self.num_rows)]
        return self.plan.estimate(sums[self._row_of], self.num_rows)
