"""A Hydra search space (`key=choice(1,3)`, `key=interval(0,1)`, ...) as the parameters of a W&B sweep."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, IntervalSweep, Override, RangeSweep
from hydra.errors import HydraException

from sm_diffusion.config.errors import one_line
from sm_diffusion.types import UserError

MOST_COMBINATIONS = 8  # up to which all combinations are checked, not each parameter by itself
_INSIDE = 0.381966  # a point inside an interval that is no round number


@dataclass(frozen=True)
class Parameter:
    """One searched key. spec: what a W&B sweep file says of it. probes: values, as Hydra reads them, that must be
    valid: every choice, or the ends and a point inside an interval."""

    key: str
    spec: dict[str, Any]
    probes: tuple[str, ...]

    @property
    def is_interval(self) -> bool:
        return "values" not in self.spec


@dataclass(frozen=True)
class Search:
    """fixed: overrides with one value. parameters: the others, in their order. words: all, as they were typed."""

    fixed: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    words: tuple[str, ...]

    def to_check(self) -> Iterator[list[str]]:
        """Overrides of configurations that must be valid: all combinations of probes if they are few, otherwise each
        probe beside the first ones of the other parameters."""
        axes = [[f"{item.key}={probe}" for probe in item.probes] for item in self.parameters]
        if math.prod(map(len, axes)) <= MOST_COMBINATIONS:
            combinations: Sequence[Sequence[str]] = list(itertools.product(*axes))
        else:
            first = [axis[0] for axis in axes]
            combinations = [first]
            for index, axis in enumerate(axes):
                combinations += [[*first[:index], value, *first[index + 1 :]] for value in axis[1:]]
        for combination in combinations:
            yield [*self.fixed, *combination]


def parse_search(words: Sequence[str]) -> Search:
    """Raises UserError, one line, for a word that Hydra cannot read and a range that holds nothing."""
    parser = OverridesParser.create()
    fixed: list[str] = []
    parameters: list[Parameter] = []
    for word in words:
        try:
            override = parser.parse_override(word)
        except HydraException as error:
            raise UserError(f"{word}: {one_line(error)}") from None
        if not override.is_sweep_override():
            fixed.append(word)
            continue
        parameter = _parameter(word, override)
        if parameter.key in {other.key for other in parameters}:
            raise UserError(f"{word}: {parameter.key} is searched twice; keep one")
        parameters.append(parameter)
    return Search(tuple(fixed), tuple(parameters), tuple(words))


def _parameter(word: str, override: Override) -> Parameter:
    key = word.partition("=")[0]
    match override.value():
        case ChoiceSweep(list=values):
            texts = [_text(value) for value in values]
            return Parameter(key, {"values": [_plain(value) for value in values]}, tuple(texts))
        case RangeSweep() as found:
            listed = list(found.range())
            if not listed:
                raise UserError(f"{word}: an empty range; the start must lie before the stop")
            return Parameter(key, {"values": listed}, tuple(map(str, listed)))
        case IntervalSweep() as interval:
            return _interval(word, key, interval)
        case Glob():
            raise UserError(f"{word}: glob is not known to W&B; list the options with choice(a,b)")
        case other:
            raise UserError(f"{word}: {other}: give choice(...), range(...) or interval(...)")


def _interval(word: str, key: str, interval: IntervalSweep) -> Parameter:
    low, high = interval.start, interval.end
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UserError(f"{word}: an empty interval; write interval(smaller,larger) with finite ends")
    whole, log = isinstance(low, int), "log" in interval.tags
    if unknown := interval.tags - {"log"}:
        raise UserError(f"{word}: tag {', '.join(map(str, unknown))}: the only tag known here is log")
    if log and low <= 0:
        raise UserError(f"{word}: a logarithmic interval must begin above 0")
    if whole:
        kind = {"distribution": "q_log_uniform_values", "q": 1} if log else {"distribution": "int_uniform"}
        inside: float = int(low + _INSIDE * (high - low))
    else:
        kind = {"distribution": "log_uniform_values" if log else "uniform"}
        inside = low * (high / low) ** _INSIDE if log else low + _INSIDE * (high - low)
    return Parameter(key, {**kind, "min": low, "max": high}, (str(low), str(inside), str(high)))


def _text(value: Any) -> str:
    """An element as Hydra's grammar reads it."""
    return Override._get_value_element_as_str(value)


def _plain(value: Any) -> Any:
    """As it stands in YAML: numbers stay numbers; what W&B would not hand on as Hydra writes it becomes text."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    return _text(value)
