"""Fixtures shared by all tests."""

from __future__ import annotations

import os

# Threads of one process: two workers of two threads on two cores would spend their time waiting for one another.
THREADS = os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(THREADS))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
