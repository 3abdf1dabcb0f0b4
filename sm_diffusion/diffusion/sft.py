"""Supervised fine-tuning of a masked-diffusion model on prompt-response pairs, as published for Dream-7B."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sm_diffusion.diffusion.masking import mask_tokens
from sm_diffusion.diffusion.objective import Noised, Objective, build_times, denoising_loss, times_problems
from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.diffusion.schedule import NoiseSchedule, TimeSampler
from sm_diffusion.registry import choice, register
from sm_diffusion.types import Batch, Draws, LossOutput


@register("times", "first_row")
@dataclass(frozen=True, kw_only=True)
class FirstRowTime(TimeSampler):
    """One time for the whole micro-batch: that of its first row, t = t_min + (t_max - t_min) time_B[0].

    As published (Hersche et al., arXiv 2510.17206: one t a batch). Since the numbers of a row are keyed by its index
    in the global batch, this t depends on neither the rank nor the number of ranks, and micro-batches of one
    accumulated step have different times. With the published micro-batch of 1 it is one time a row; with larger ones
    a row's time follows the row it happens to share the micro-batch with: take `UniformTimes` to avoid that.
    """

    def unit(self, draws: Draws) -> Tensor:
        return draws.time_B[:1].expand_as(draws.time_B)


def at_least_one_mask(masked_BL: Tensor, uniform_BL: Tensor, maskable_BL: Tensor) -> Tensor:
    """Rows without a mask get one, at the maskable position with the smallest uniform number; (B, L) bool.

    That position would have been masked first, and is uniform over the row's maskable positions, so no further random
    number is needed. Rows with nothing maskable stay as they are.

    The reference instead draws one column above the first such row's prompt length and masks it in every such row:
    it can mask another row's prompt, and never follows that row's own length.
    """
    first_B1 = uniform_BL.masked_fill(~maskable_BL, torch.inf).argmin(1, keepdim=True)
    needs_B1 = ~masked_BL.any(1, keepdim=True) & maskable_BL.any(1, keepdim=True)
    columns_L = torch.arange(masked_BL.shape[1], device=masked_BL.device)
    return masked_BL | ((columns_L == first_B1) & needs_B1)


class SFTObjective(Objective):
    """(1 / t) times the mean cross-entropy of the masked response tokens of the micro-batch.

        p_mask = eps + (1 - eps) t        loss = sum_n nll_n / t_{b(n)} / N,   N masked tokens

    Published: eps = 1e-3, t ~ U[0.2, 0.8] one a batch. The prompt (`maskable_BL` False) is never masked; padding is
    masked and trained like text unless the collator says otherwise (`data.chat.collate.collate(pads_are_maskable=)`).
    Unlike the MDLM bound the mean is over the masked tokens, so 1 / t counts twice and this is no likelihood bound.

    times:   where t comes from; `FirstRowTime` as published, `UniformTimes` for one time a row. t_min must be > 0.
    """

    def __init__(self, *, times: TimeSampler, mask_id: int, eps: float = 1e-3) -> None:
        if not 0 < times.t_min <= times.t_max <= 1:
            raise ValueError(f"fine-tuning needs 0 < t_min <= t_max <= 1, got {times.t_min} and {times.t_max}")
        self.times = times
        self.mask_id = mask_id
        self.eps = eps

    def mask_probability(self, t: Tensor) -> Tensor:
        return self.eps + (1 - self.eps) * t

    def noise(self, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        """(t_B, masked_BL): the times and the masked positions of a batch."""
        maskable_BL = torch.ones_like(batch.ids_BL, dtype=torch.bool)
        for allowed_BL in (batch.maskable_BL, batch.attention_mask_BL):
            if allowed_BL is not None:
                maskable_BL = maskable_BL & allowed_BL
        t_B = self.times(draws)
        _, masked_BL = mask_tokens(batch.ids_BL, self.mask_probability(t_B), draws.mask_BL, self.mask_id, maskable_BL)
        return t_B, at_least_one_mask(masked_BL, draws.mask_BL, maskable_BL)

    def __call__(self, predictor: Predictor, batch: Batch, draws: Draws, *, feedback: bool) -> LossOutput:
        t_B, masked_BL = self.noise(batch, draws)
        ids_t_BL = batch.ids_BL.masked_fill(masked_BL, self.mask_id)
        return denoising_loss(
            predictor,
            Noised(ids_t_BL, batch.ids_BL, masked_BL, batch.attention_mask_BL, places_PQ=batch.places_PQ),
            weight_B=1 / t_B,
            sigma_B=None,
            num_tokens=masked_BL.sum().clamp_min(1),
            feedback=feedback,
        )

    def masked_share(self) -> float:
        return self.eps + (1 - self.eps) * (self.times.t_min + self.times.t_max) / 2


@register("objective", "sft")
@dataclass(frozen=True, kw_only=True)
class SFTSettings:
    """Fine-tuning on prompts and responses; times as published for Dream-7B."""

    times: str = choice("times", "first_row")
    t_min: float = 0.2  # diffusion time, in (0, t_max)
    t_max: float = 0.8
    eps: float = 1e-3  # masked share at t = 0

    def problems(self) -> Iterator[str]:
        yield from times_problems(self.t_min, self.t_max)
        if not 0 <= self.eps < 1:
            yield f"objective.eps={self.eps}: must lie in [0, 1)"

    def build(self, *, schedule: NoiseSchedule, mask_id: int) -> Objective:
        """schedule: not used; the masking probability of fine-tuning is its own."""
        return SFTObjective(times=build_times(self.times, self.t_min, self.t_max), mask_id=mask_id, eps=self.eps)
