"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import signal
import threading

# A shell that starts a job in the background has it ignore Ctrl-C, and children inherit that: tests of Ctrl-C would
# test the shell.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Threads of one process: two workers of two threads on two cores would spend their time waiting for one another. What
# the first process sets its workers inherit: they must tell its choice from the user's.
CHOSEN_HERE = "SMD_TEST_CHOSE_THREADS"
if "OMP_NUM_THREADS" not in os.environ:
    os.environ |= {"OMP_NUM_THREADS": "2", CHOSEN_HERE: "1"}
if "PYTEST_XDIST_WORKER" in os.environ and CHOSEN_HERE in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
THREADS = os.environ["OMP_NUM_THREADS"]

import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(int(THREADS))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
