"""The head of a run's folder is written once, by one process."""

from __future__ import annotations

from sm_diffusion.training.callbacks.begin import BeginRun


def test_it_is_written_once_and_by_the_first_process_only() -> None:
    written: list[int] = []
    begin = BeginRun(lambda: written.append(1))
    begin.now()
    begin.now()
    assert written == [1]
    other = BeginRun(lambda: written.append(2))
    other.now(first=False)
    other.now()
    assert written == [1]
