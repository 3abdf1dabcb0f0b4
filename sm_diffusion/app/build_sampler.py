"""From sampler settings to the loop and its policy."""

from __future__ import annotations

from collections.abc import Iterator

from sm_diffusion.config import schema_sampler as schema
from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.diffusion.schedule import LogLinear, NoiseSchedule
from sm_diffusion.diffusion.soft_mask import (
    ConstantStrength,
    LinearStrength,
    StepwiseStrength,
    StrengthSchedule,
    WindowStrength,
)
from sm_diffusion.sampling import (
    MEASURES,
    Ancestral,
    Blockwise,
    CacheScope,
    ConfidenceOrder,
    DualCache,
    FirstHitting,
    Origin,
    PrefixCache,
    RandomOrder,
    RemdmCap,
    RemdmConf,
    RemdmLoop,
    RemdmRescale,
    Sampler,
    Threshold,
    Timetable,
    TokenSampling,
    UnmaskPolicy,
)
from sm_diffusion.sampling.categorical import Measure
from sm_diffusion.types import UserError


def build_measure(name: str) -> Measure:
    if name not in MEASURES:
        raise UserError(f"sampler.measure={name}: choose one of {', '.join(MEASURES)}")
    return MEASURES[name]()


def build_strength(sampler: schema.SamplerConfig) -> StrengthSchedule:
    match sampler.strength:
        case "constant":
            return ConstantStrength()
        case "linear":
            return LinearStrength()
        case "stepwise":
            if sampler.strength_levels < 1:
                raise UserError(f"sampler.strength_levels={sampler.strength_levels}: must be >= 1")
            return StepwiseStrength(num_levels=sampler.strength_levels)
        case "window":
            if not 0 <= sampler.strength_until < sampler.strength_from <= 1:
                raise UserError(
                    f"sampler.strength_until={sampler.strength_until}, sampler.strength_from={sampler.strength_from}: "
                    "must satisfy 0 <= strength_until < strength_from <= 1"
                )
            return WindowStrength(t_from=sampler.strength_from, t_until=sampler.strength_until)
        case name:
            raise UserError(f"sampler.strength={name}: choose constant, linear, stepwise or window")


def build_policy(sampler: schema.SamplerConfig, schedule: NoiseSchedule | None) -> UnmaskPolicy:
    """The order, within blocks where `block_length` is set."""
    order = _order(sampler, schedule)
    return order if sampler.block_length is None else Blockwise(order, block_length=sampler.block_length)


def build_cache(sampler: schema.SamplerConfig) -> CacheScope | None:
    """What is stored between steps; UserError for a cache without blocks to follow."""
    if sampler.cache == "none":
        if sampler.refresh_steps is not None:
            raise UserError(f"sampler.refresh_steps={sampler.refresh_steps}: there is no cache; set sampler.cache")
        return None
    scopes: dict[str, type[CacheScope]] = {"prefix": PrefixCache, "dual": DualCache}
    if sampler.cache not in scopes:
        raise UserError(f"sampler.cache={sampler.cache}: choose none, prefix or dual")
    if sampler.block_length is None:
        raise UserError(f"sampler.cache={sampler.cache}: caches follow blocks; set sampler.block_length, such as 32")
    return scopes[sampler.cache](refresh_steps=sampler.refresh_steps)


def _order(sampler: schema.SamplerConfig, schedule: NoiseSchedule | None) -> UnmaskPolicy:
    """schedule: of the training. Log-linear noise cancels in the ancestral step, so it counts as none, as published."""
    match sampler:
        case schema.AncestralConfig():
            own = None if isinstance(schedule, LogLinear) else schedule
            return Ancestral(num_steps=sampler.num_steps, eps=sampler.eps, schedule=own)
        case schema.RemdmCapConfig():
            return RemdmCap(num_steps=sampler.num_steps, eps=sampler.eps, eta=sampler.eta)
        case schema.RemdmRescaleConfig():
            return RemdmRescale(num_steps=sampler.num_steps, eps=sampler.eps, eta=sampler.eta)
        case schema.RemdmConfConfig():
            return RemdmConf(num_steps=sampler.num_steps, eps=sampler.eps)
        case schema.RemdmLoopConfig():
            return RemdmLoop(
                num_steps=sampler.num_steps,
                eps=sampler.eps,
                eta=sampler.eta,
                t_on=sampler.t_on,
                t_off=sampler.t_off,
                alpha_on=sampler.alpha_on,
            )
        case schema.FirstHittingConfig():
            return FirstHitting(tokens_per_step=sampler.tokens_per_step)
        case schema.ConfidenceConfig():
            return ConfidenceOrder(
                measure=build_measure(sampler.measure),
                pace=Timetable(num_steps=sampler.num_steps, eps=sampler.eps),
                alg_temp=sampler.alg_temp,
            )
        case schema.ThresholdConfig():
            return ConfidenceOrder(measure=build_measure(sampler.measure), pace=Threshold(value=sampler.value))
        case schema.RandomOrderConfig():
            return RandomOrder(num_steps=sampler.num_steps, eps=sampler.eps)
        case schema.OriginConfig():
            return Origin(num_steps=sampler.num_steps, eps=sampler.eps)
        case _:
            choices = ", ".join(kind().name for kind in schema.SAMPLERS)
            raise UserError(f"sampler={sampler.name}: no sampler of that name; choose one of {choices}")


def build_sampler(
    sampler: schema.SamplerConfig,
    predictor: Predictor,
    *,
    schedule: NoiseSchedule | None = None,
    time_conditioning: bool = False,
) -> Sampler:
    """The loop over `predictor`.

    schedule:          of training; None: log-linear.
    time_conditioning: the network is told its noise level, from `schedule`.
    """
    return Sampler(
        predictor,
        build_policy(sampler, schedule),
        sampling=_token_sampling(sampler),
        strength=build_strength(sampler),
        schedule=(schedule or LogLinear()) if time_conditioning else None,
        noise_removal=sampler.noise_removal,
        reuse_unchanged_batch=sampler.reuse_unchanged_batch,
        cache=build_cache(sampler),
    )


def _token_sampling(sampler: schema.SamplerConfig) -> TokenSampling:
    return TokenSampling(
        temperature=sampler.temperature,
        top_p=sampler.top_p,
        top_k=sampler.top_k,
        keep_crossing=sampler.keep_crossing,
    )


def sampler_problems(sampler: schema.SamplerConfig) -> Iterator[str]:
    """Every problem of the settings, one line each."""
    for check in (
        lambda: build_policy(sampler, None),
        lambda: _token_sampling(sampler),
        lambda: build_strength(sampler),
        lambda: build_cache(sampler),
    ):
        try:
            check()
        except UserError as error:
            yield str(error)


def with_total_steps(sampler: schema.SamplerConfig, *, total: int, new_tokens: int) -> schema.SamplerConfig:
    """A copy that spends `total` steps on `new_tokens` masks. UserError where the sampler cannot do that exactly."""
    values = dict(vars(sampler))
    match sampler:
        case schema.TimedSamplerConfig():
            blocks = 1 if sampler.block_length is None else -(-new_tokens // sampler.block_length)
            if total % blocks:
                raise UserError(
                    f"sampler.block_length={sampler.block_length}: {total} steps do not divide into {blocks} blocks of "
                    f"{new_tokens} new tokens; choose a block_length for which they do"
                )
            values["num_steps"] = total // blocks
        case schema.FirstHittingConfig() if new_tokens % total == 0:
            values["tokens_per_step"] = new_tokens // total
        case _:
            raise UserError(
                f"sampler={sampler.name}: cannot take {total} steps for {new_tokens} tokens; "
                "choose another sampler, such as confidence_entropy"
            )
    return type(sampler)(**values)


def with_overrides(
    sampler: schema.SamplerConfig, *, steps: int | None, temperature: float | None, top_p: float | None
) -> schema.SamplerConfig:
    """A copy with these settings replaced; None keeps the sampler's own. UserError where one does not apply."""
    values = dict(vars(sampler))
    if steps is not None:
        if not isinstance(sampler, schema.TimedSamplerConfig):
            raise UserError(
                f"steps={steps}: sampler={sampler.name} has no fixed number of steps, leave it out; "
                "choose another sampler, such as ancestral, for a given number of steps"
            )
        values["num_steps"] = steps
    if temperature is not None:
        values["temperature"] = float(temperature)
    if top_p is not None:
        values["top_p"] = float(top_p)
    changed = type(sampler)(**values)
    problems = list(sampler_problems(changed))
    if problems:
        raise UserError("; ".join(problems))
    return changed
