"""`smd chat` on a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.templates import write_model


def _read_until(terminal: int, end: str, seconds: float = 1500) -> str:
    """What the program wrote up to `end`; fails when it stays silent for so long."""
    text, began = "", time.monotonic()
    while end not in text:
        ready, _, _ = select.select([terminal], [], [], 1)
        if ready:
            text += os.read(terminal, 4096).decode(errors="replace")
        assert time.monotonic() - began < seconds, text
    return text


@pytest.mark.slow
def test_on_a_terminal(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "sm_diffusion.cli.main", "chat", str(folder), "--length", "8", "--steps", "4"]
    command += ["--show-denoising"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    greeting = _read_until(ours, "you> ")
    assert f"{folder}: mdlm, texts of 128 tokens, answers of 8." in greeting
    os.write(ours, b"hello\n")
    answered = _read_until(ours, "you> ")
    assert "step 0, 8 masks left" in answered
    assert "░" in answered
    assert "model> " in answered
    os.write(ours, b"/reset\n")
    assert "the conversation starts anew" in _read_until(ours, "you> ")
    os.write(ours, b"\x04")  # Ctrl-D
    assert process.wait(timeout=120) == 0
    os.close(ours)
