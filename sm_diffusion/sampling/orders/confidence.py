"""Orders by confidence and by chance: Dream's timetable, or as many tokens as are sure enough.

A confidence order needs the prediction before it can choose, so the head runs at every masked position. The random
orders choose first, like the ancestral sampler. Diffusion time, for noise levels and decode-time schedules of the
feedback, is the share of a row's open positions that is still masked (as in the authors' Dream code).
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sm_diffusion.registry import choice, find, refuse, register
from sm_diffusion.sampling.categorical import Measure
from sm_diffusion.sampling.noise import StepNoise
from sm_diffusion.sampling.orders.base import (
    Proposal,
    State,
    TimeGrid,
    UnmaskPolicy,
    grid_problems,
    masked_share,
    top_n,
)
from sm_diffusion.types import UserError

# Confidences closer than this are tied. Masked positions without context (all of them, in the first step of an empty
# canvas) differ by float32 rounding only, which changes with batch size and padding: the order must not.
_TIE = 1e-5


class Pace(ABC):
    """How many tokens a confidence order accepts in a step."""

    @abstractmethod
    def count(self, state: State, confidence_BL: Tensor) -> Tensor:
        """int64 (B,), tokens to accept in each row, the surest first. confidence: -inf where nothing was drawn."""

    @abstractmethod
    def is_idle(self, state: State) -> Tensor:
        """bool (B,), rows in which no token can be accepted in this step, whatever the prediction."""

    @abstractmethod
    def max_steps(self, open_BL: Tensor) -> int: ...

    @property
    @abstractmethod
    def end_time(self) -> float: ...


class Timetable(Pace):
    """Dream's: num_steps steps; step i accepts floor(masks left * (1 - s / t)) tokens, the last step all that is left.

    Dream counts the masks averaged over the batch; here each row counts its own, so that its text does not depend on
    its neighbours (the same when all rows have equally many).
    """

    def __init__(self, *, num_steps: int, eps: float = 1e-3) -> None:
        self.grid = TimeGrid(num_steps, eps)

    def scheduled(self, state: State) -> Tensor:
        """int64 (B,), the number due in this step."""
        # float32, as in Dream: where masks * share is almost whole, the rounding decides.
        return (state.masked_BL.sum(1).float() * self.grid.share(state.step)).long()

    def count(self, state: State, confidence_BL: Tensor) -> Tensor:
        return self.scheduled(state)

    def is_idle(self, state: State) -> Tensor:
        return self.scheduled(state) == 0

    def max_steps(self, open_BL: Tensor) -> int:
        return self.grid.num_steps

    @property
    def end_time(self) -> float:
        return self.grid.times[-1]


class Threshold(Pace):
    """All tokens with confidence >= value, and at least one a row (parallel decoding of Fast-dLLM, arXiv 2505.22618).

    value: in the units of the measure: probability or margin in [0, 1], or negative entropy in nats (<= 0).
    """

    def __init__(self, *, value: float) -> None:
        self.value = value

    def count(self, state: State, confidence_BL: Tensor) -> Tensor:
        return (confidence_BL >= self.value).sum(1).clamp_min(1)

    def is_idle(self, state: State) -> Tensor:
        return ~state.masked_BL.any(1)

    def max_steps(self, open_BL: Tensor) -> int:
        return int(open_BL.sum(1).max())

    @property
    def end_time(self) -> float:
        return 0.0


class ConfidenceOrder(UnmaskPolicy):
    """Accept the drawn tokens the model is surest of (Dream's maskgit_plus, topk_margin and entropy).

    measure:  `DrawnProbability`, `Margin` or `NegEntropy`, of the distribution drawn from.
    pace:     `Timetable` or `Threshold`.
    alg_temp: None or 0 takes the surest; > 0 draws positions without replacement from softmax(confidence / alg_temp),
              by adding Gumbel noise (equal to Dream's multinomial). Not with `Threshold`.
    """

    def __init__(self, *, measure: Measure, pace: Pace, alg_temp: float | None = None) -> None:
        if alg_temp is not None and not alg_temp >= 0:
            raise UserError(f"sampler.alg_temp={alg_temp}: must be >= 0 (0 or null: the surest positions)")
        if alg_temp and isinstance(pace, Threshold):
            raise UserError(f"sampler.alg_temp={alg_temp}: a confidence threshold leaves nothing to draw, set it to 0")
        self.measure = measure
        self.pace = pace
        self.alg_temp = alg_temp or 0.0

    def propose(self, state: State, noise: StepNoise) -> Proposal:
        draw_BL = state.masked_BL & ~self.pace.is_idle(state)[:, None]

        def choose(confidence_BL: Tensor) -> Tensor:
            score_BL = confidence_BL
            if self.alg_temp > 0:
                # u = 0 would give -inf.
                gumbel_BL = -torch.log(-torch.log(noise.order_BL.clamp_min(torch.finfo(torch.float64).tiny)))
                score_BL = confidence_BL / self.alg_temp + gumbel_BL
            return top_n(score_BL, draw_BL, self.pace.count(state, confidence_BL), tie=_TIE)

        return Proposal(masked_share(state), draw_BL, choose=choose, measure=self.measure)

    def max_steps(self, open_BL: Tensor) -> int:
        return self.pace.max_steps(open_BL)

    @property
    def remasks(self) -> bool:
        return False

    @property
    def end_time(self) -> float:
        return self.pace.end_time


@dataclass(frozen=True, kw_only=True)
class ChosenFirst(UnmaskPolicy):
    """Positions chosen without a prediction, on a grid of num_steps times."""

    num_steps: int = 128
    eps: float = 1e-3  # last time of the grid

    def __post_init__(self) -> None:
        refuse(self)

    def problems(self) -> Iterator[str]:
        yield from grid_problems(self.num_steps, self.eps)

    @functools.cached_property
    def pace(self) -> Timetable:
        return Timetable(num_steps=self.num_steps, eps=self.eps)

    @abstractmethod
    def pick(self, state: State, noise: StepNoise) -> Tensor:
        """bool (B, L), masked positions that get a token in this step."""

    def propose(self, state: State, noise: StepNoise) -> Proposal:
        return Proposal(masked_share(state), self.pick(state, noise))

    def max_steps(self, open_BL: Tensor) -> int:
        return self.pace.max_steps(open_BL)

    @property
    def remasks(self) -> bool:
        return False

    @property
    def end_time(self) -> float:
        return self.pace.end_time


@register("sampler", "random")
@dataclass(frozen=True, kw_only=True)
class RandomOrder(ChosenFirst):
    """A timetable's number of tokens a step, at uniformly random masked positions."""

    def pick(self, state: State, noise: StepNoise) -> Tensor:
        return top_n(noise.order_BL, state.masked_BL, self.pace.scheduled(state))


@register("sampler", "origin")
@dataclass(frozen=True, kw_only=True)
class Origin(ChosenFirst):
    """Dream's "origin": every masked position by itself, with probability 1 - s / t; in the last step all."""

    def pick(self, state: State, noise: StepNoise) -> Tensor:
        return state.masked_BL & (noise.move_BL < self.pace.grid.share(state.step))


def build_measure(name: str) -> Measure:
    """The measure of confidence registered under a name."""
    measure: Measure = find("measure", name, key="sampler.measure")()
    return measure


@register("sampler", "confidence")
@dataclass(frozen=True, kw_only=True)
class ConfidenceSettings:
    """Dream's orders: a timetable's number of tokens a step, the surest first."""

    num_steps: int = 128
    eps: float = 1e-3  # last time of the grid
    measure: str = choice("measure", "entropy")
    alg_temp: float | None = None  # > 0 perturbs the order; null or 0: the surest

    def __post_init__(self) -> None:
        refuse(self)

    def problems(self) -> Iterator[str]:
        yield from grid_problems(self.num_steps, self.eps)
        if self.alg_temp is not None and not self.alg_temp >= 0:
            yield f"sampler.alg_temp={self.alg_temp}: must be >= 0 (0 or null: the surest positions)"

    def build(self) -> UnmaskPolicy:
        pace = Timetable(num_steps=self.num_steps, eps=self.eps)
        return ConfidenceOrder(measure=build_measure(self.measure), pace=pace, alg_temp=self.alg_temp)


@register("sampler", "threshold")
@dataclass(frozen=True, kw_only=True)
class ThresholdSettings:
    """As many tokens a step as are sure enough, and at least one."""

    measure: str = choice("measure", "probability")
    value: float = 0.9  # in the measure's unit: probability or margin in [0, 1], negative entropy in nats (<= 0)

    def build(self) -> UnmaskPolicy:
        return ConfidenceOrder(measure=build_measure(self.measure), pace=Threshold(value=self.value))
