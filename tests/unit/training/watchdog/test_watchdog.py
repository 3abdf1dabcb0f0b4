"""Who is blamed when a run of several processes stops moving, and what a process knows of the others."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from sm_diffusion.training.watchdog.heartbeat import Beat, conclude, ended_ranks
from sm_diffusion.training.watchdog.watchdog import VERDICT, Watchdog, heartbeat
from sm_diffusion.types import UserError

HOST = "here"


def beat(rank: int, **changes: Any) -> Beat:
    values: dict[str, Any] = {
        "rank": rank, "host": HOST, "pid": os.getpid(), "written": time.time(), "step": 4, "place": "module.py:9 step",
        "collectives": 12, "last": "all_reduce of shape 3 (no. 12)",
    }
    return Beat(**(values | changes))


def blamed(*beats: Beat, world_size: int | None = None, statuses: dict[int, int] | None = None) -> str | None:
    found = {entry.rank: entry for entry in beats}
    ended = ended_ranks(found, statuses or {}, host=HOST)
    size = len(beats) if world_size is None else world_size
    return conclude(found, world_size=size, ended=ended, stale_seconds=10, folder=Path("runs/x/heartbeat"))


def test_the_rank_that_entered_fewer_collectives_is_the_one_that_hangs() -> None:
    behind = beat(2, collectives=11, place="loader.py:3 fetch", last="broadcast of shape 1 (no. 11)")
    assert blamed(beat(0), beat(1), behind, beat(3)) == (
        "rank 2 hangs in step 4 at loader.py:3 fetch; the last collective it entered is broadcast of shape 1 (no. 11)"
        "; ranks 0, 1, 3 wait for it in all_reduce of shape 3 (no. 12)"
    )
    assert blamed(beat(0), beat(1)) is None


def test_ends_come_before_silence_and_silence_before_being_behind() -> None:
    silent = beat(1, written=time.time() - 60)
    behind = beat(2, collectives=3)
    assert str(blamed(beat(0), silent, behind)).startswith("rank 1 has not been heard of for 60 s (process ")
    raised = beat(2, collectives=3, ended="KeyError: 'x'")
    assert blamed(beat(0), silent, raised) == "rank 2 ended with KeyError: 'x'"
    assert blamed(beat(0), beat(1), statuses={1: -9}) == "rank 1 was killed by signal 9 (SIGKILL)"
    assert blamed(beat(0), beat(1), statuses={1: 3}) == "rank 1 ended with status 3"
    assert str(blamed(beat(0), world_size=2)).startswith("rank 1 wrote nothing into runs/x/heartbeat")


def test_a_process_of_this_machine_that_has_ended_is_seen_even_before_anyone_waited_for_it() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", ""])
    deadline = time.monotonic() + 60
    while not heartbeat.process_is_gone(child.pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    zombie = child.returncode is None
    assert zombie, "nobody has waited for it"
    assert heartbeat.process_is_gone(child.pid)
    assert str(blamed(beat(0), beat(1, pid=child.pid))).startswith("rank 1 has ended without a word (process ")
    child.wait()
    assert heartbeat.process_is_gone(child.pid)
    assert not heartbeat.process_is_gone(os.getpid())


def test_beats_survive_the_disk_and_half_written_ones_are_passed_over(tmp_path: Path) -> None:
    heartbeat.write_beat(tmp_path, beat(0))
    heartbeat.beat_file(tmp_path, 1).write_text('{"rank": 1, "ho')
    assert list(heartbeat.read_beats(tmp_path, range(3))) == [0]
    assert heartbeat.read_beats(tmp_path, [0])[0].last == beat(0).last


def test_the_place_of_the_main_thread_is_its_innermost_line_here() -> None:
    assert heartbeat.main_thread_place().startswith("training/watchdog/heartbeat.py:")


def watchdog(folder: Path, *, rank: int = 0) -> Watchdog:
    made = Watchdog(folder=folder, checkpoint=folder / "last.ckpt", timeout_seconds=1.0)
    made.rank, made.world_size = rank, 2
    made._thread = threading.Thread()  # as if it ran
    return made


LOST = RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1\nmore")


def test_a_lost_connection_is_explained_by_the_rank_that_raised(tmp_path: Path) -> None:
    heartbeat.write_beat(tmp_path, beat(1, ended="KeyError: 'x'"))
    found = watchdog(tmp_path).close(LOST)
    assert isinstance(found, UserError)
    assert str(found) == "rank 1 ended with KeyError: 'x'; no checkpoint yet; continue with ckpt_path=auto"
    assert (tmp_path / VERDICT).read_text() == f"{found}\n"


def test_only_one_rank_speaks_and_own_errors_are_kept(tmp_path: Path) -> None:
    (tmp_path / VERDICT).write_text("said already\n")
    heartbeat.write_beat(tmp_path, beat(0, ended="OSError: disk"))
    ended = watchdog(tmp_path, rank=1).close(LOST)
    assert isinstance(ended, SystemExit)
    assert watchdog(tmp_path, rank=1).close(ValueError("my own")) is None
    assert heartbeat.read_beats(tmp_path, [1])[1].ended == "ValueError: my own"


def test_a_run_that_ends_well_leaves_no_trace(tmp_path: Path) -> None:
    folder = tmp_path / "heartbeat"
    folder.mkdir()
    heartbeat.write_beat(folder, beat(0))
    assert watchdog(folder).close() is None
    assert not folder.exists()
    alone = Watchdog(folder=folder, checkpoint=folder, timeout_seconds=1.0)
    assert alone.close(LOST) is None, "one process: nothing to explain"


def test_unknown_causes_are_said_to_be_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank in (0, 1):
        heartbeat.write_beat(tmp_path, beat(rank, collectives=0, pid=os.getpid()))
    text = str(watchdog(tmp_path).close(LOST))
    assert "a collective failed or hangs, and no rank is behind ([gloo/transport/tcp/pair.cc:553]" in text
    assert "\n" not in text
