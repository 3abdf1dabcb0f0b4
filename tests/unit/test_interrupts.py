"""Ctrl-C: where it ends a program at once, where it unwinds, and who is deaf to it. Whole runs: tests/e2e."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, signal, sys
from sm_diffusion import interrupts
{before}
interrupts.{phase}()
try:
    os.kill(os.getpid(), signal.SIGINT)
    {then}
except interrupts.Interrupted as error:
    print("unwound", error.code, flush=True)
    {after}
print("ended", flush=True)
"""


def ended(phase: str, *, before: str = "", then: str = "pass", after: str = "pass") -> tuple[int, str, str]:
    code = PROGRAM.format(phase=phase, before=before, then=then, after=after)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


def test_during_imports_it_is_one_line() -> None:
    status, out, said = ended("listen")
    assert (status, out, said.count("\n")) == (130, "", 1)


def test_later_it_unwinds_and_a_second_one_ends_at_once() -> None:
    assert ended("unwind") == (0, "unwound 130\nended\n", "")
    assert ended("unwind", after="os.kill(os.getpid(), signal.SIGINT)") == (130, "unwound 130\n", "")


@pytest.mark.parametrize("phase", ["listen", "unwind"])
def test_a_program_that_was_made_deaf_stays_deaf(phase: str) -> None:
    assert ended(phase, before="signal.signal(signal.SIGINT, signal.SIG_IGN)") == (0, "ended\n", "")
