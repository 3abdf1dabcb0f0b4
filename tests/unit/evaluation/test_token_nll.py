"""The mean over tokens, whatever the sizes of the batches."""

from __future__ import annotations

import pytest
import torch

from sm_diffusion.evaluation.token_nll import TokenNLL
from sm_diffusion.types import LossOutput


def test_batches_weigh_by_their_tokens() -> None:
    metric = TokenNLL()
    for total, tokens in ((6.0, 2), (1.0, 8)):
        metric.update(LossOutput(torch.zeros(()), torch.tensor(total), torch.tensor(tokens), 1))
    assert float(metric.compute()) == pytest.approx(0.7)
