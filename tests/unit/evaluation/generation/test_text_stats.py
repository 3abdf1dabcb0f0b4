"""Statistics of texts, by hand on tiny inputs."""

from __future__ import annotations

import math

import pytest
import torch

from sm_diffusion.evaluation.generation.reader import judged_positions
from sm_diffusion.evaluation.generation.text_stats import distinct, repetition, statistics_of, unigram_entropy


def test_entropy_distinct_and_repetition_by_hand() -> None:
    assert unigram_entropy([7] * 9) == 0.0
    assert unigram_entropy([1, 2, 3, 4]) == pytest.approx(math.log(4))
    assert unigram_entropy([1, 1, 2, 3]) == pytest.approx(1.5 * math.log(2))
    assert distinct([[1, 2, 1], [1, 2]], 1) == 2 / 5
    assert distinct([[1, 2, 1], [1, 2]], 2) == 2 / 3  # n-grams never cross samples
    assert math.isnan(distinct([[1]], 2))
    assert repetition([1, 2, 1, 2, 1, 2], 4) == pytest.approx(1 / 3)
    assert repetition([1, 2], 4) == 0.0
    assert statistics_of([[1, 1], [1, 2]])["entropy"] == pytest.approx(math.log(2) / 2)


def test_first_end_of_text_counts_and_nothing_after_it() -> None:
    ids_BL = torch.tensor([[5, 6, 0, 7, 0], [0, 5, 6, 0, 3], [5, 6, 7, 8, 9]])
    real_BL = torch.tensor([[True] * 5, [True] * 5, [True, True, True, False, False]])
    keep = judged_positions(ids_BL, real_BL, [0]).int().tolist()
    assert keep == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert judged_positions(ids_BL, real_BL, []).sum() == 10
