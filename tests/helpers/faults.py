"""Runs that meet a fault on purpose: `python -m tests.helpers.faults kill|ranks ...`."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sm_diffusion.training.checkpoints import store as ckpt_store
from sm_diffusion.training.module import DiffusionModule
from sm_diffusion.types import UserError
from tests.helpers.ranks import fork_ranks
from tests.helpers.runs import run


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def die_inside_save(number: int, share: float) -> None:
    """This process is killed when `share` of the bytes of its save `number` are on disk."""
    real, count = torch.save, [0]

    def save(tree: Any, file: Any, **options: Any) -> None:
        count[0] += 1
        if count[0] == number:
            scratch = Path(f"{file.name}.scratch")
            real(tree, scratch)
            data = scratch.read_bytes()
            scratch.unlink()
            file.write(data[: int(len(data) * share)])
            file.flush()
            kill_this_process()
        real(tree, file, **options)

    torch.save = save  # type: ignore[assignment]


def kill_runs(root: Path, name: str, kills: int, settings: list[str], seed: int) -> None:
    """Fork a run again and again and kill it, every other time inside a save, then let it end. Prints a report."""
    torch.set_num_threads(1)
    choose = random.Random(seed)
    report: list[dict[str, Any]] = []
    while True:
        inside, last = len(report) % 2 == 1, len(report) == kills
        number, share, delay = choose.randint(1, 8), choose.random(), choose.uniform(0.0, 0.5)
        early = choose.random() < 0.3  # while it starts; else some time after its first save
        checkpoint = root / name / "checkpoints/last.ckpt"
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        child = os.fork()
        if child == 0:
            if inside and not last:
                die_inside_save(number, share)
            try:
                run(root, name, *settings, "ckpt_path=auto")
            except BaseException as error:
                print(f"child failed: {error!r}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        if not inside and not last:
            deadline = time.monotonic() + 60
            while not early and time.monotonic() < deadline:
                if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
                    break
                time.sleep(0.01)
            time.sleep(delay)
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        left = sorted(path.name for path in (root / name / "checkpoints").glob("*"))
        report.append({"status": status, "inside": inside, "left": left})
        if status >= 0:
            break
        assert len(report) <= kills, "the last run was killed, too"
    print(json.dumps(report))


def content_of(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder, but for the lock that whoever writes a run leaves there."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if (path.is_symlink() or path.is_file()) and path.name != ".lock"
    }


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """Files cannot grow beyond `limit` bytes: a disk that is full, also for root."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def full_disk_from_save(number: int) -> Callable[..., None]:
    real, count = torch.save, [0]

    def save(tree: Any, file: Any, **options: Any) -> None:
        count[0] += 1
        with small_files(20_000) if count[0] >= number else small_files(resource.RLIM_INFINITY):
            real(tree, file, **options)

    return save


def at_step(step: int, rank: int, act: Callable[[dict[str, Any]], None]) -> Callable[..., dict[str, Any]]:
    """A training step that calls act(outputs) on one rank at one optimizer step."""
    real = DiffusionModule.training_step

    def training_step(self: DiffusionModule, batch: Any, batch_idx: int) -> dict[str, Any]:
        out = real(self, batch, batch_idx)
        if self.global_step == step and self.global_rank == rank:
            act(out)
        return out

    return training_step


def spoil(out: dict[str, Any]) -> None:
    out["loss"] = out["loss"] * float("nan")


def run_ranks(root: Path, jobs: list[tuple[str, str, list[str]]]) -> None:
    """Jobs of two ranks: (fault, name, settings). NAME.fault.RANK.json gets how each ended and how long it took."""
    rank = int(os.environ["LOCAL_RANK"])
    step, save = DiffusionModule.training_step, torch.save
    for fault, name, settings in jobs:
        DiffusionModule.training_step, torch.save = step, save  # type: ignore[method-assign, assignment]
        match fault:
            case "signal":
                act = at_step(2, 1, lambda _: os.kill(os.getpid(), signal.SIGUSR1))
            case "nan":
                act = at_step(4, 1, spoil)
            case "death":
                act = at_step(4, 1, lambda _: kill_this_process())
            case "raise":
                act = at_step(4, 1, lambda _: {}["a fault of this rank"])
            case "hang" | "hang-first":
                act = at_step(4, int(fault == "hang"), lambda _: time.sleep(600))
            case "stop":
                act = at_step(4, 1, lambda _: os.kill(os.getpid(), signal.SIGSTOP))
            case _:
                act = step
        DiffusionModule.training_step = act  # type: ignore[method-assign]
        if fault == "disk":
            torch.save = full_disk_from_save(2)  # type: ignore[assignment]
        ended, started = "done", time.monotonic()
        try:
            run(root, name, *settings)
        except UserError as error:
            ended = f"error: {error}"
        except SystemExit as error:
            ended = f"exit: {error.code}"
        except KeyError as error:
            ended = f"raised: {error}"
        record = {"ended": ended, "seconds": time.monotonic() - started}
        (root / f"{name}.{fault}.{rank}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    if sys.argv[1] == "kill":
        kill_runs(Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), json.loads(sys.argv[5]), int(sys.argv[6]))
    else:
        folder, groups = Path(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text())
        torch.set_num_threads(1)
        print(json.dumps([fork_ranks(2, folder / f"group-{index}", partial(run_ranks, folder, group))
                          for index, group in enumerate(groups)]))
    assert ckpt_store  # imported before the first fork
