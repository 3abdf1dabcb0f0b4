"""What a user sets of a sampler: how tokens are drawn and what is fed back, around an order of unmasking.

The orders are components (`sampler=remdm_cap`); these settings stand beside each order's own. Published values are in
conf/sampler. Times are diffusion times in (0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.diffusion.schedule import LogLinear, NoiseSchedule
from sm_diffusion.diffusion.soft_mask import (
    ConstantStrength,
    LinearStrength,
    StairsStrength,
    StepwiseStrength,
    StrengthSchedule,
    WindowStrength,
)
from sm_diffusion.registry import choice, find, name_of, own_part, register
from sm_diffusion.sampling.cache import CacheScope, DualCache, PrefixCache
from sm_diffusion.sampling.categorical import TokenSampling
from sm_diffusion.sampling.loop import Sampler
from sm_diffusion.sampling.orders.ancestral import Ancestral
from sm_diffusion.sampling.orders.base import UnmaskPolicy
from sm_diffusion.sampling.orders.blockwise import Blockwise
from sm_diffusion.types import UserError


@runtime_checkable
class OrderSettings(Protocol):
    """Settings of an order that are not the order itself."""

    def build(self) -> UnmaskPolicy: ...


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How tokens are drawn and what is fed back, whatever the order in which positions are unmasked."""

    order: UnmaskPolicy | OrderSettings = own_part()
    temperature: float = 1.0  # >= 0; 0: the most probable token
    top_p: float = 1.0  # nucleus, in (0, 1]
    top_k: int | None = None  # null: all tokens
    keep_crossing: bool = False  # the nucleus keeps the token that crosses top_p (Dream); false: it does not (MDLM)
    noise_removal: bool = True  # a last pass puts the most probable token where a mask is left
    strength: str = choice("strength", "constant")  # decode-time factor on omega_s
    strength_levels: int = 4  # stairs only
    strength_from: float = 1.0  # window only: the factor is 1 while strength_until < t <= strength_from, else 0
    strength_until: float = 0.0  # window only: diffusion time
    reuse_unchanged: bool = False  # a row that did not change uses its prediction again (published: batches of one)
    reuse_unchanged_batch: bool = False  # the same where no row of the batch changed; ties a text to its batch
    block_length: int | None = None  # tokens of a block, filled left to right (num_steps: of each); null: no blocks
    cache: str = choice("cache", "none")  # keys and values kept between steps (Fast-dLLM); needs block_length
    refresh_steps: int | None = None  # steps from one refresh of the cache to the next; null: once a block

    @property
    def name(self) -> str:
        """What the order is registered as."""
        return name_of("sampler", type(self.order))

    @property
    def num_steps(self) -> int | None:
        """Steps of the order's grid, of each block where there are blocks; None: the order has no grid."""
        return vars(self.order)["num_steps"] if self._has("num_steps") else None

    def _has(self, setting: str) -> bool:
        order: Any = self.order
        return any(item.name == setting for item in fields(order))

    def problems(self) -> Iterator[str]:
        """Every problem of the settings, a line each."""
        for check in (lambda: self.build_policy(None), self.token_sampling, self.build_strength, self.build_cache):
            try:
                check()
            except UserError as error:
                yield from str(error).splitlines()

    # -------------------------------------------------------------------------------------------------------- build

    def build(
        self, predictor: Predictor, *, schedule: NoiseSchedule | None = None, time_conditioning: bool = False
    ) -> Sampler:
        """The loop over `predictor`.

        schedule:          of training; None: log-linear.
        time_conditioning: the network is told its noise level, from `schedule`.
        """
        return Sampler(
            predictor,
            self.build_policy(schedule),
            sampling=self.token_sampling(),
            strength=self.build_strength(),
            schedule=(schedule or LogLinear()) if time_conditioning else None,
            noise_removal=self.noise_removal,
            reuse="batch" if self.reuse_unchanged_batch else "rows" if self.reuse_unchanged else "never",
            cache=self.build_cache(),
        )

    def build_policy(self, schedule: NoiseSchedule | None) -> UnmaskPolicy:
        """The order, within blocks where `block_length` is set."""
        order = self.order.build() if isinstance(self.order, OrderSettings) else self.order
        if isinstance(order, Ancestral):
            order = order.under(schedule)
        return order if self.block_length is None else Blockwise(order, block_length=self.block_length)

    def token_sampling(self) -> TokenSampling:
        return TokenSampling(
            temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, keep_crossing=self.keep_crossing
        )

    def build_strength(self) -> StrengthSchedule:
        strength: StrengthSchedule = find("strength", self.strength, key="sampler.strength")(self)
        return strength

    def build_cache(self) -> CacheScope | None:
        """What is stored between steps; UserError for a cache without blocks to follow."""
        scope: CacheScope | None = find("cache", self.cache, key="sampler.cache")(self)
        return scope

    # ------------------------------------------------------------------------------------------------------- copies

    def with_total_steps(self, *, total: int, new_tokens: int) -> SamplerSettings:
        """A copy that spends `total` steps on `new_tokens` masks. UserError where it cannot do that exactly."""
        if self._has("num_steps"):
            blocks = 1 if self.block_length is None else -(-new_tokens // self.block_length)
            if total % blocks:
                raise UserError(
                    f"sampler.block_length={self.block_length}: {total} steps do not divide into {blocks} blocks of "
                    f"{new_tokens} new tokens; choose a block_length for which they do"
                )
            return self._with_order(num_steps=total // blocks)
        if self._has("tokens_per_step") and new_tokens % total == 0:
            return self._with_order(tokens_per_step=new_tokens // total)
        raise UserError(
            f"sampler={self.name}: cannot take {total} steps for {new_tokens} tokens; "
            "choose another sampler, such as confidence_entropy"
        )

    def with_overrides(
        self, *, steps: int | None, temperature: float | None = None, top_p: float | None = None
    ) -> SamplerSettings:
        """A copy with these settings replaced; None keeps the sampler's own. UserError where one does not apply."""
        changed = self
        if steps is not None:
            if not self._has("num_steps"):
                raise UserError(
                    f"steps={steps}: sampler={self.name} has no fixed number of steps, leave it out; "
                    "choose another sampler, such as ancestral, for a given number of steps"
                )
            changed = changed._with_order(num_steps=steps)
        if temperature is not None:
            changed = replace(changed, temperature=float(temperature))
        if top_p is not None:
            changed = replace(changed, top_p=float(top_p))
        problems = list(changed.problems())
        if problems:
            raise UserError("; ".join(problems))
        return changed

    def _with_order(self, **settings: Any) -> SamplerSettings:
        order: Any = self.order
        return replace(self, order=replace(order, **settings))


@register("strength", "constant")
def constant_strength(sampler: SamplerSettings) -> StrengthSchedule:
    """omega_s as trained."""
    return ConstantStrength()


@register("strength", "linear")
def linear_strength(sampler: SamplerSettings) -> StrengthSchedule:
    """omega_s * t."""
    return LinearStrength()


@register("strength", "stepwise")
def stepwise_strength(sampler: SamplerSettings) -> StrengthSchedule:
    """omega_s while more than half of the text is masked, then plain masks: the authors' schedule."""
    return StepwiseStrength()


@register("strength", "stairs")
def stairs_strength(sampler: SamplerSettings) -> StrengthSchedule:
    """The linear fade in `strength_levels` equal steps."""
    if sampler.strength_levels < 1:
        raise UserError(f"sampler.strength_levels={sampler.strength_levels}: must be >= 1")
    return StairsStrength(num_levels=sampler.strength_levels)


@register("strength", "window")
def window_strength(sampler: SamplerSettings) -> StrengthSchedule:
    """omega_s while strength_until < t <= strength_from, plain masks outside."""
    if not 0 <= sampler.strength_until < sampler.strength_from <= 1:
        raise UserError(
            f"sampler.strength_until={sampler.strength_until}, sampler.strength_from={sampler.strength_from}: "
            "must satisfy 0 <= strength_until < strength_from <= 1"
        )
    return WindowStrength(t_from=sampler.strength_from, t_until=sampler.strength_until)


@register("cache", "none")
def no_cache(sampler: SamplerSettings) -> CacheScope | None:
    """Everything is computed anew in every step."""
    if sampler.refresh_steps is not None:
        raise UserError(f"sampler.refresh_steps={sampler.refresh_steps}: there is no cache; set sampler.cache")
    return None


@register("cache", "prefix")
def prefix_cache(sampler: SamplerSettings) -> CacheScope | None:
    """Keys and values before the block are stored."""
    _blocks_needed(sampler)
    return PrefixCache(refresh_steps=sampler.refresh_steps)


@register("cache", "dual")
def dual_cache(sampler: SamplerSettings) -> CacheScope | None:
    """Keys and values before and after the block are stored."""
    _blocks_needed(sampler)
    return DualCache(refresh_steps=sampler.refresh_steps)


def _blocks_needed(sampler: SamplerSettings) -> None:
    if sampler.block_length is None:
        raise UserError(
            f"sampler.cache={sampler.cache}: caches follow blocks; set sampler.block_length, such as 32"
        )
