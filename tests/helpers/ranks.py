"""Several tiny runs in one launch of two gloo processes or more, which costs little more than one run."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch._C import _distributed_c10d

from sm_diffusion.training.module import DiffusionModule

ROOT = Path(__file__).parents[2]
Jobs = list[tuple[str, list[str]]]  # name of the run, its overrides


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def recorded(rows: list[list[Any]]) -> Iterator[None]:
    """Append [optimizer step, row of the global batch, token ids] of every training sequence to `rows`."""
    original = DiffusionModule.on_before_batch_transfer

    def record(self: DiffusionModule, batch: Any, index: int) -> Any:
        if self.trainer.training:
            pairs = zip(batch.rows_B.tolist(), batch.ids_BL.tolist(), strict=True)
            rows.extend([self.global_step, row, ids] for row, ids in pairs)
        return original(self, batch, index)

    DiffusionModule.on_before_batch_transfer = record  # type: ignore[method-assign]
    try:
        yield
    finally:
        DiffusionModule.on_before_batch_transfer = original  # type: ignore[method-assign]


def fork_ranks(world: int, log: Path, program: Callable[[], None]) -> list[int]:
    """Run `program` in `world` processes, as a scheduler would start them; their exit statuses.

    They are forked: what is imported before is imported once. LOG.RANK gets what each says.
    """
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world), "NODE_RANK": "0"}
    children = []
    for rank in range(world):
        child = os.fork()
        if child == 0:
            os.environ.update(shared, LOCAL_RANK=str(rank))
            rank_zero_only.rank = rank  # Lightning read it when it was imported, before the fork
            with Path(f"{log}.{rank}").open("w") as file:
                os.dup2(file.fileno(), 2)
            status = 1
            try:
                program()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return [_ended(child, patience=3600.0 if rank == 0 else 60.0) for rank, child in enumerate(children)]


def _ended(child: int, *, patience: float) -> int:
    """Exit status of a child; one that outlives the first rank by more than `patience` seconds is killed."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def launch(arguments: list[str], *, timeout: float = 1500) -> Any:
    """What `python -m ARGUMENTS` prints in its last line, as JSON."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def run_on_ranks(root: Path, jobs: Jobs, *, world: int = 2) -> None:
    """Run the jobs one after another on `world` ranks; NAME.rank.json gets the sequences each rank saw."""
    listing = root / f"jobs-{world}.json"
    listing.write_text(json.dumps(jobs))
    statuses = launch(["tests.helpers.ranks", str(root), str(listing), str(world)])
    for rank, status in enumerate(statuses):
        assert status == 0, Path(f"{listing}.{rank}").read_text()[-4000:]


def main(root: Path, jobs: Jobs) -> None:
    from tests.helpers.runs import run

    for name, settings in jobs:
        rows: list[list[Any]] = []
        before = len(collectives())
        with recorded(rows):
            run(root, name, *settings)
        (root / f"{name}.{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(rows))
        (root / f"{name}.collectives.{os.environ['LOCAL_RANK']}").write_text(json.dumps(collectives()[before:]))


def collectives() -> list[str]:
    """Kinds of the collectives this process has entered, in their order, as torch's flight recorder has them."""
    entries = json.loads(_distributed_c10d._dump_fr_trace_json()).get("entries", [])
    assert len(entries) < int(os.environ["TORCH_FR_BUFFER_SIZE"]), "older ones were forgotten"
    return [entry["profiling_name"].partition(":")[2] for entry in entries]


if __name__ == "__main__":
    folder, listing = Path(sys.argv[1]), Path(sys.argv[2])
    listed = json.loads(listing.read_text())
    os.environ |= {"TORCH_FR_BUFFER_SIZE": "30000", "DS_ACCELERATOR": "cpu"}
    importlib.import_module("tests.helpers.runs")  # before the fork
    if "deepspeed" in listing.read_text():
        importlib.import_module("deepspeed")
    torch.set_num_threads(1)
    print(json.dumps(fork_ranks(int(sys.argv[3]), listing, lambda: main(folder, listed))))
