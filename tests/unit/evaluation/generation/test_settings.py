"""Settings of evaluator=generative: what is refused before anything is loaded."""

from __future__ import annotations

import pytest

from sm_diffusion.evaluation.generation.settings import GenerativeSettings


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"num_samples": 0}, "evaluator.num_samples=0: must be positive"),
        ({"judge_tokens": -1}, "evaluator.judge_tokens=-1: must be positive"),
        ({"temperatures": [1.0, -1.0]}, "evaluator.temperatures=[1.0, -1.0]: each must be >= 0"),
        ({"mauve": True, "mauve_seeds": []}, "evaluator.mauve_seeds=[]: give at least one seed of k-means"),
    ],
)
def test_each_problem_is_one_line(given: dict[str, object], expected: str) -> None:
    found = list(GenerativeSettings(**given).problems())  # type: ignore[arg-type]
    assert len(found) == 1
    assert found[0].startswith(expected)


def test_defaults_are_fine() -> None:
    assert list(GenerativeSettings().problems()) == []
