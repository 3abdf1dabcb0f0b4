"""What every process of a run writes about itself now and then, and what can be concluded when one is missing.

A beat is one small file for each rank, `<run>/heartbeat/rank-00003.json`: step, place in the code, and the collectives
it has entered so far, as torch's flight recorder counts them (gloo and NCCL alike). All ranks enter the same
collectives in the same order, so a rank that has entered fewer than the others is the one they wait for.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

from torch._C import _distributed_c10d

from sm_diffusion.files import encode, read_json, replacing

PACKAGE = Path(__file__).resolve().parents[2]
_RECORDERS = ("_dump_fr_trace_json", "_dump_nccl_trace_json")


class Collectives(NamedTuple):
    """How many collectives this process has entered, and the newest one ("all_reduce of shape 3x5 (no. 41)")."""

    entered: int
    last: str


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One rank, at one moment. written: seconds since 1970. ended: how its program ended, when it did."""

    rank: int
    host: str
    pid: int
    written: float
    step: int
    place: str
    collectives: int
    last: str
    ended: str | None = None


def record_collectives() -> None:
    """Let torch keep the newest collectives of this process. Call before its first process group is made."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "64")


def entered_collectives() -> Collectives:
    """Of all process groups of this process together; (0, "none") where torch records nothing."""
    count = 0
    newest: dict[str, Any] = {"time_created_ns": -1, "profiling_name": "none"}
    for name in _RECORDERS:
        if name not in vars(_distributed_c10d):
            continue  # NCCL's is missing in builds without CUDA
        found = json.loads(vars(_distributed_c10d)[name]())
        count += sum(max(0, int(group["last_enqueued_collective"])) for group in found.get("pg_status", {}).values())
        newest = max([newest, *found.get("entries", [])], key=lambda entry: int(entry["time_created_ns"]))
    return Collectives(count, _describe(newest))


def _describe(entry: Mapping[str, Any]) -> str:
    name = str(entry["profiling_name"]).partition(":")[2] or str(entry["profiling_name"])
    if "collective_seq_id" not in entry:
        return name
    sizes = "x".join(map(str, (entry.get("input_sizes") or [[]])[0]))
    return f"{name}{f' of shape {sizes}' if sizes else ''} (no. {entry['collective_seq_id']})"


def main_thread_place() -> str:
    """Where the program's main thread is: its innermost line of this package, and of what that calls."""
    frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
    inner = frame
    while frame is not None and not Path(frame.f_code.co_filename).is_relative_to(PACKAGE):
        frame = frame.f_back
    places = [_line(entry) for entry in dict.fromkeys([frame, inner]) if entry is not None]
    return ", in ".join(places) or "unknown"


def _line(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    name = path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else path.name
    return f"{name}:{frame.f_lineno} {frame.f_code.co_name}"


def beat_file(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank:05d}.json"


def write_beat(folder: Path, beat: Beat) -> None:
    path = beat_file(folder, beat.rank)
    with replacing(path, durable=False) as partial:  # a few seconds old, it is worth nothing
        partial.write_bytes(encode(json.dumps(asdict(beat))))


def read_beats(folder: Path, ranks: Iterable[int]) -> dict[int, Beat]:
    """The newest beat of every rank that wrote one."""
    found = {}
    for rank in ranks:
        try:
            found[rank] = Beat(**read_json(beat_file(folder, rank)))
        except (ValueError, TypeError):  # UserError among them: none yet
            continue
    return found


def exit_status(status: int) -> str:
    """What an exit status of a process says."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        name = f" ({signal.Signals(-status).name})"
    except ValueError:
        name = ""
    return f"was killed by signal {-status}{name}"


def process_is_gone(pid: int) -> bool:
    """Whether a process of this machine has ended, waited for or not. False where there is no /proc."""
    if not Path("/proc/self").exists():
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def ended_ranks(beats: Mapping[int, Beat], statuses: Mapping[int, int], *, host: str) -> dict[int, str]:
    """Ranks whose process has ended, and how. statuses: exit statuses that this process knows as a parent."""
    found = {rank: exit_status(status) for rank, status in statuses.items() if status}
    for rank, beat in beats.items():
        if beat.ended is not None:
            found[rank] = f"ended with {beat.ended}"
        elif rank not in found and beat.host == host and beat.pid != os.getpid() and process_is_gone(beat.pid):
            found[rank] = f"has ended without a word (process {beat.pid} on {beat.host}, step {beat.step})"
    return found


def conclude(
    beats: Mapping[int, Beat], *, world_size: int, ended: Mapping[int, str], stale_seconds: float, folder: Path
) -> str | None:
    """Who is to blame, in one sentence; None when the beats do not tell.

    First ranks that have ended, then those that were not heard of for `stale_seconds`, then those that have entered
    fewer collectives than the others.
    """
    if ended:
        return "; ".join(f"rank {rank} {how}" for rank, how in sorted(ended.items()))
    missing = [rank for rank in range(world_size) if rank not in beats]
    if missing:
        return f"{_names(missing)} wrote nothing into {folder} (all machines must see the same output_dir)"
    now = time.time()
    silent = [beat for beat in beats.values() if now - beat.written > stale_seconds]
    if silent:
        return "; ".join(
            f"rank {beat.rank} has not been heard of for {now - beat.written:.0f} s (process {beat.pid} on "
            f"{beat.host}); it was then in step {beat.step} and had last entered {beat.last}"
            for beat in silent
        )
    most = max(beats.values(), key=lambda beat: beat.collectives)
    behind = [beat for beat in beats.values() if beat.collectives < most.collectives]
    if not behind:
        return None
    waiting = [beat.rank for beat in beats.values() if beat.collectives == most.collectives]
    return (
        "; ".join(
            f"rank {beat.rank} hangs in step {beat.step} at {beat.place}; the last collective it entered is {beat.last}"
            for beat in behind
        )
        + f"; {_names(waiting)} wait{'s' if len(waiting) == 1 else ''} for it in {most.last}"
    )


def _names(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return "ranks " + ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
