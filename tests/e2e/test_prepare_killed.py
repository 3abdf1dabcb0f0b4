"""`smd prepare` killed at random points makes the same shards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sm_diffusion.cli.main import main
from tests.helpers.data import (
    contents,
    folder_below,
    prepare_command,
    write_openwebtext,
)

KILLED = """
import os, random, signal, sys
from pathlib import Path
from sm_diffusion.data.stores import shard_writer as shard_build
from sm_diffusion.data.stores import shard_format as shards
from tests.helpers.data import file_corpus, shard_preparer

corpus = file_corpus(sys.argv[1], deduplicate=True)

def attempt(folder, fatal):  # fatal: the number of the file operation at which the process dies; None: never
    child = os.fork()
    if child == 0:
        seen = 0
        def watch(event, args):
            nonlocal seen
            if event in ("open", "os.rename", "os.remove", "os.mkdir") and str(folder) in str(args[0]):
                seen += 1
                if seen == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(watch)
        shard_preparer(corpus, folder).prepare(workers=1)
        (folder / "operations").write_text(str(seen))
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

root, points, draw = Path(sys.argv[2]), int(sys.argv[3]), random.Random(sys.argv[4])
assert attempt(root / "whole", None) == 0
operations = int((root / "whole" / "operations").read_text())
for number in range(points):
    folder = root / f"killed{number}"
    for fatal in (draw.randrange(1, operations), draw.randrange(1, operations // 2)):  # twice
        status = attempt(folder, fatal)
        assert status in (0, -signal.SIGKILL), status
    assert attempt(folder, None) == 0
print(operations)
"""


def kill_at_random_points(tmp_path: Path, points: int, seed: int) -> None:
    write_openwebtext(tmp_path / "owt")
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "owt"), str(tmp_path), str(points), str(seed)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 30, "enough file operations to be killed at"
    (whole,) = (path for path in (tmp_path / "whole" / "prepared").iterdir() if path.is_dir())
    for number in range(points):
        folder = tmp_path / f"killed{number}" / "prepared" / whole.name
        assert contents(folder) == contents(whole), number


@pytest.mark.distributed
def test_killed_at_5_random_points_the_shards_are_the_same(tmp_path: Path) -> None:
    kill_at_random_points(tmp_path, 5, seed=random.randrange(2**32))


@pytest.mark.slow
@pytest.mark.distributed
def test_killed_at_20_random_points_the_shards_are_the_same(tmp_path: Path) -> None:
    kill_at_random_points(tmp_path, 20, seed=random.randrange(2**32))


@pytest.mark.distributed
def test_the_command_killed_with_its_workers_running(tmp_path: Path) -> None:
    write_openwebtext(tmp_path / "owt", files=30)
    for shards in (1, 4):
        command = [sys.executable, "-m", "sm_diffusion.cli.main", *prepare_command(tmp_path, "--workers", "2")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        while process.poll() is None and len(list((tmp_path / "cache").rglob("*.bin"))) < shards:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert main(prepare_command(tmp_path)) == 0
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "owt").symlink_to(tmp_path / "owt")
    assert main(prepare_command(tmp_path / "alone")) == 0
    left = contents(folder_below(tmp_path / "cache"))
    left = {name: content for name, content in left.items() if not name.endswith(".tmp")}  # of a dying worker
    assert left == contents(folder_below(tmp_path / "alone" / "cache"))
