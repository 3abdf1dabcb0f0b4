"""Fixtures shared by all tests."""

from __future__ import annotations

import os

import pytest
import torch

# Two cores: a test must not spend its time on thread hand-over.
torch.set_num_threads(int(os.environ.get("SMD_TEST_THREADS", "2")))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
