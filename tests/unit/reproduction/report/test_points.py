"""Points of evaluations."""

from __future__ import annotations

import math

import pytest

from sm_diffusion.reproduction.collected import Collected, Row
from sm_diffusion.reproduction.report import points as plot_points


def collected(*rows: tuple[str, dict[str, float], int]) -> Collected:
    """(name, metrics, the sampler's steps); two seeds each, the second with metrics doubled."""
    made = []
    for name, metrics, steps in rows:
        runs = {
            seed: {
                "metrics": {key: value if "nfe" in key else seed * value for key, value in metrics.items()},
                "config": {"sampler": {"num_steps": steps}},
            }
            for seed in (1, 2)
        }
        made.append(Row(name, runs))
    return Collected(made)


def test_points_of_evaluations() -> None:
    found = collected(
        ("sm_nfe64", {"humaneval/pass@1": 0.2, "humaneval/nfe": 65.0, "humaneval/tokens_per_second": 10.0}, 64),
        ("sm_nfe128", {"humaneval/pass@1": 0.4, "gen/ppl": math.nan, "gen/entropy": 2.0}, 128),
        ("binary_1_2", {"gen/ppl": 20.0, "gen/entropy": 4.0}, 8),
        ("hot", {"gen/ppl@0.5": 10.0, "gen/entropy@0.5": 3.0, "gen/ppl@1": 40.0, "gen/entropy@1": 5.0}, 8),
    )
    assert plot_points.accuracy_metrics(found) == ["humaneval/pass@1"]
    lines = plot_points.accuracy_over_nfe(found, "humaneval/pass@1")
    assert list(lines) == ["sm"]
    assert [(point.x, round(point.y, 6)) for point in lines["sm"]] == [(65.0, 0.3), (128.0, 0.6)]
    assert lines["sm"][0].y_std == pytest.approx(0.2 / math.sqrt(2))
    border = plot_points.frontier(found)
    assert list(border) == ["binary", "hot"]  # NaN is no point
    assert [point.note for point in border["hot"]] == ["T = 0.5", "T = 1"]
    assert border["binary"][0][:2] == (6.0, 30.0)
    fast, x, y = plot_points.throughput(found)
    assert (x, y) == ("humaneval/tokens_per_second", "humaneval/pass@1")
    assert fast["sm"][0][:2] == (15.0, pytest.approx(0.3))
