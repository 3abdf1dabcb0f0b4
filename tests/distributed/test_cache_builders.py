"""Processes that build one cache at once, and one that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.data import everything, folder_of, prepared

WORKER = """
import sys
from pathlib import Path
from sm_diffusion.data.stores.arrow_cache import prepare_tokens
from sm_diffusion.data.tokenizers.base import ByteTokenizer
from tests.helpers.data import GatedSource, tiny_source
root = Path(sys.argv[1])
(root / f"started.{sys.argv[2]}").touch()
source = GatedSource(tiny_source(), builds=root / "builds", gate=root / "gate")
cache = prepare_tokens(source=source, tokenizer=ByteTokenizer(), length=8, cache_dir=root / "cache")
print(len(cache.train), cache.meta.key)
"""


def start_worker(root: Path, name: str) -> subprocess.Popen[str]:
    path = os.pathsep.join(sys.path)
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, str(root), name],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, *processes: subprocess.Popen[str]) -> None:
    while not path.exists():
        for process in processes:
            assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)


@pytest.mark.distributed
def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    workers = [start_worker(tmp_path, name) for name in "ab"]
    wait_for(tmp_path / "builds", *workers)
    for name in "ab":
        wait_for(tmp_path / f"started.{name}", *workers)
    (tmp_path / "gate").touch()
    outputs = [worker.communicate()[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    assert outputs[0] == outputs[1] != ""
    assert len((tmp_path / "builds").read_text().splitlines()) == 1
    assert everything(prepared(tmp_path / "cache")) == everything(prepared(tmp_path / "alone"))


@pytest.mark.distributed
def test_a_killed_build_neither_blocks_nor_leaves_anything(tmp_path: Path) -> None:
    worker = start_worker(tmp_path, "a")
    wait_for(tmp_path / "builds", worker)
    assert not (tmp_path / "gate").exists(), "still in the middle of the build"
    worker.send_signal(signal.SIGKILL)
    worker.communicate()
    left = [path.name for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(left) == 1
    assert left[0].startswith(".tokens-")
    cache = prepared(tmp_path / "cache")
    assert everything(cache) == everything(prepared(tmp_path / "alone"))
    assert folder_of(tmp_path / "cache").name == f"tokens-{cache.meta.key}"
