"""The one table of components."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from sm_diffusion import registry
from sm_diffusion.types import UserError


@dataclass(frozen=True)
class Pair:
    low: float = 0.0
    high: float = 1.0

    def problems(self) -> Iterator[str]:
        if self.low < 0:
            yield f"pair.low={self.low}: must be >= 0"
        if self.high > 1:
            yield f"pair.high={self.high}: must be <= 1"


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    registry.names("schedule")
    copied = {group: dict(entries) for group, entries in registry._TABLE.components.items()}
    monkeypatch.setattr(registry._TABLE, "components", copied)


def test_a_component_is_found_by_its_name_and_its_class(table: None) -> None:
    registry.register("schedule", "pair")(Pair)
    assert registry.find("schedule", "pair") is Pair
    assert registry.name_of("schedule", Pair) == "pair"
    assert registry.names("schedule")[:3] == ("log_linear", "linear", "cosine")


def test_registering_the_same_thing_again_changes_nothing(table: None) -> None:
    registry.register("schedule", "pair")(Pair)
    registry.register("schedule", "pair")(Pair)
    with pytest.raises(ValueError, match="has a component of this name already"):
        registry.register("schedule", "log_linear")(Pair)
    with pytest.raises(ValueError, match="no such group; the groups are model"):
        registry.register("shedule", "pair")(Pair)


def test_an_unknown_name_lists_the_choices_and_the_nearest() -> None:
    with pytest.raises(UserError) as error:
        registry.find("schedule", "cosin", key="schedule.name")
    assert str(error.value) == (
        "schedule.name=cosin: unknown (did you mean cosine?); choose one of log_linear, linear, cosine"
    )


def test_every_problem_is_said_at_once() -> None:
    assert len(registry.problems_of(Pair(low=-1, high=2))) == 2
    assert registry.problems_of(object()) == []
    with pytest.raises(UserError, match=r"low=-1: .*\n.*high=2"):
        registry.refuse(Pair(low=-1, high=2))


def test_every_built_in_component_says_what_it_is() -> None:
    for group in registry.groups():
        assert group.says
        for component in registry.components(group.name):
            assert component.provider
