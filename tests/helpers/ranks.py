"""Several tiny runs in one launch of two gloo processes, which costs little more than one run."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def start_ranks(arguments: list[str], *, world: int = 2) -> list[subprocess.Popen[str]]:
    """Start `python ARGUMENTS` once for each rank, as a scheduler would."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world), "NODE_RANK": "0"}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env=os.environ | shared | {"LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]


def finish(processes: list[subprocess.Popen[str]], *, timeout: float = 400) -> list[tuple[int, str]]:
    """(exit status, stderr) of every process."""
    try:
        errors = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, error) for process, error in zip(processes, errors, strict=True)]


def run_on_two_ranks(root: Path, jobs: Jobs) -> None:
    """Run the jobs one after another on two ranks; NAME.rank.json gets the sequences each rank saw."""
    listing = root / "jobs.json"
    listing.write_text(json.dumps(jobs))
    for status, error in finish(start_ranks(["-m", "tests.helpers.ranks", str(root), str(listing)])):
        assert status == 0, error[-4000:]


def main(root: Path, jobs: Jobs) -> None:
    from tests.helpers.runs import run

    for name, settings in jobs:
        rows: list[list[Any]] = []
        with recorded(rows):
            run(root, name, *settings)
        (root / f"{name}.{os.environ['LOCAL_RANK']}.json").write_text(json.dumps(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
