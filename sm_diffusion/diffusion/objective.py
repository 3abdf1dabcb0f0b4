"""Training objectives: from a clean batch and its random numbers to a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sm_diffusion.diffusion import packed
from sm_diffusion.diffusion.masking import mask_tokens
from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.diffusion.readouts.base import NegLogLikelihood, positions_of
from sm_diffusion.diffusion.schedule import NoiseSchedule, TimeSampler
from sm_diffusion.registry import choice, find, register
from sm_diffusion.types import NLL, Batch, Draws, LossOutput


class Objective(ABC):
    """A loss whose mean over tokens is minimised. Randomness is an argument: equal draws give equal losses."""

    @abstractmethod
    def __call__(self, predictor: Predictor, batch: Batch, draws: Draws, *, feedback: bool) -> LossOutput:
        """feedback: spend a first pass without gradient, and give its memory to the pass that carries the loss."""

    @abstractmethod
    def masked_share(self) -> float:
        """Expected share of maskable positions that are masked, in (0, 1]: what FLOPs are counted with."""


class MDLMObjective(Objective):
    """The MDLM bound: sum over masked l of w(t) (-log p(x_l | x_t)), averaged over ALL real tokens of the batch.

    w(t) = -alpha'(t) / (1 - alpha(t)) (Sahoo et al., arXiv 2406.07524, eq. 10). In expectation over t and the mask it
    is an upper bound on the negative log-likelihood. With feedback the two passes are together one function of x_t, so
    it bounds the likelihood of that two-pass model; a sampler that carries the previous step's prediction along is a
    different procedure.
    """

    def __init__(self, *, schedule: NoiseSchedule, times: TimeSampler, mask_id: int) -> None:
        self.schedule = schedule
        self.times = times
        self.mask_id = mask_id

    def __call__(self, predictor: Predictor, batch: Batch, draws: Draws, *, feedback: bool) -> LossOutput:
        real_BL = batch.attention_mask_BL
        maskable_BL = batch.maskable_BL
        if real_BL is not None:
            maskable_BL = real_BL if maskable_BL is None else maskable_BL & real_BL
        t_B = self.times(draws)
        ids_t_BL, masked_BL = mask_tokens(
            batch.ids_BL, self.schedule.mask_probability(t_B), draws.mask_BL, self.mask_id, maskable_BL
        )
        num_tokens = torch.tensor(batch.ids_BL.numel(), device=t_B.device) if real_BL is None else real_BL.sum()
        return denoising_loss(
            predictor,
            Noised(ids_t_BL, batch.ids_BL, masked_BL, real_BL, places_PQ=batch.places_PQ),
            weight_B=self.schedule.loss_weight(t_B),
            sigma_B=self.schedule.sigma(t_B),
            num_tokens=num_tokens,
            feedback=feedback,
        )

    def masked_share(self) -> float:
        draws_t = self.times.t_min + (self.times.t_max - self.times.t_min) * torch.linspace(0, 1, 1001)
        return float(self.schedule.mask_probability(draws_t).mean())


class Noised:
    """x_t and its targets, as the network takes them: laid into packed rows where the batch says so.

    counted_BL: the masked positions whose loss counts.
    masked_BL:  the positions that soft-masking may soften; None: those whose loss counts.
    places_PQ:  see `Batch`.

    sequences_N: the sequence in the batch of every counted position.
    """

    def __init__(
        self,
        ids_t_BL: Tensor,
        targets_BL: Tensor,
        counted_BL: Tensor,
        attention_mask_BL: Tensor | None = None,
        masked_BL: Tensor | None = None,
        *,
        places_PQ: Tensor | None = None,
    ) -> None:
        self.ids_t_BL = ids_t_BL
        self.positions_N = positions_of(counted_BL)
        self.soft_positions_N = self.positions_N if masked_BL is None else positions_of(masked_BL)
        self.targets_N = targets_BL.flatten()[self.positions_N]
        self.sequences_N = self.positions_N // ids_t_BL.shape[1]
        self.attention_mask_BL = attention_mask_BL
        if places_PQ is not None:
            total = ids_t_BL.numel()
            self.positions_N = packed.packed_positions(self.positions_N, places_PQ, total)
            self.soft_positions_N = packed.packed_positions(self.soft_positions_N, places_PQ, total)
            self.attention_mask_BL = packed.segments(places_PQ, ids_t_BL.shape[1])
            self.ids_t_BL = packed.lay(ids_t_BL, places_PQ)


def denoising_loss(
    predictor: Predictor,
    noised: Noised,
    *,
    weight_B: Tensor,
    sigma_B: Tensor | None,
    num_tokens: Tensor,
    feedback: bool,
) -> LossOutput:
    """sum_n weight * nll_n / num_tokens at the counted positions of a given x_t, in one pass or two."""
    conditions = {"sigma_B": sigma_B, "attention_mask_BL": noised.attention_mask_BL}
    memory = predictor.bootstrap(noised.ids_t_BL, noised.soft_positions_N, feedback=feedback, **conditions)
    weights_N = weight_B[noised.sequences_N]
    readout = NegLogLikelihood(noised.positions_N, noised.targets_N, weights_N / num_tokens)
    nll: NLL = predictor(noised.ids_t_BL, memory, readout, **conditions)
    nll_sum = (nll.nll_N.double() * weights_N.double()).sum()
    return LossOutput(nll.total, nll_sum, num_tokens, 1 if memory is None else 2)


def build_times(name: str, t_min: float, t_max: float) -> TimeSampler:
    """The time sampler registered under a name."""
    sampler: TimeSampler = find("times", name, key="objective.times")(t_min=t_min, t_max=t_max)
    return sampler


def times_problems(t_min: float, t_max: float) -> Iterator[str]:
    if not 0 < t_min < t_max <= 1:
        yield f"objective.t_min={t_min}, objective.t_max={t_max}: must satisfy 0 < t_min < t_max <= 1"


@register("objective", "mdlm")
@dataclass(frozen=True, kw_only=True)
class MDLMSettings:
    """The MDLM bound."""

    times: str = choice("times", "stratified")  # over the global batch
    t_min: float = 1e-3  # diffusion time, in (0, t_max)
    t_max: float = 1.0

    def problems(self) -> Iterator[str]:
        yield from times_problems(self.t_min, self.t_max)
        if self.times == "first_row":
            yield "objective.times=first_row: only fine-tuning has one time a batch; set objective.times=stratified"

    def build(self, *, schedule: NoiseSchedule, mask_id: int) -> Objective:
        times = build_times(self.times, self.t_min, self.t_max)
        return MDLMObjective(schedule=schedule, times=times, mask_id=mask_id)
