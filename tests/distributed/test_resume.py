"""Runs that are killed, asked to stop, or meet a fault: what is left, what is said, and that they go on exactly."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sm_diffusion.training.callbacks.preemption import PREEMPTED
from sm_diffusion.training.checkpoints import store as ckpt_store
from sm_diffusion.types import UserError
from tests.helpers.ranks import launch
from tests.helpers.runs import assert_same_checkpoint, overrides, run

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
# Saves at every step, so that a random moment is often inside one.
OFTEN = ["trainer.max_steps=40", "trainer.val_every_steps=10", "callbacks.checkpoint.every_steps=1",
         "trainer.log_every_steps=1", "model.dropout=0.1"]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def losses(folder: Path) -> dict[int, str]:
    found: dict[int, str] = {}
    for file in sorted((folder / "metrics").rglob("metrics.csv"), key=lambda path: path.stat().st_mtime):
        whole_lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
        for row in csv.DictReader(whole_lines):
            if row.get("train/loss"):
                found[int(row["step"])] = row["train/loss"]
    return found


@pytest.mark.parametrize(("kills", "extra"), [(20, []), (10, ["callbacks.checkpoint.async_save=true"])])
def test_killed_at_random_moments_ends_as_if_never_killed(tmp_path: Path, kills: int, extra: list[str]) -> None:
    whole = ["-m", "tests.helpers.faults", "kill", str(tmp_path), "whole", "0", json.dumps(OFTEN), "0"]
    parts = [*whole[:4], "parts", str(kills), json.dumps([*OFTEN, *extra]), "1"]
    for arguments in (whole, parts):
        done = subprocess.run(
            [sys.executable, *arguments], env=environment(), capture_output=True, text=True, timeout=900, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        report = json.loads(done.stdout.splitlines()[-1])
        assert report[-1]["status"] == 0, done.stderr[-3000:]
    assert sum(entry["status"] == -signal.SIGKILL for entry in report) >= min(3, kills)
    assert any(".last.ckpt.partial" in entry["left"] for entry in report), "no kill fell inside a save"
    assert_same_checkpoint(tmp_path / "whole/checkpoints/last.ckpt", tmp_path / "parts/checkpoints/last.ckpt")
    a, b = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "parts"))
    assert a["metrics"] == b["metrics"]
    curve, expected = losses(tmp_path / "parts"), losses(tmp_path / "whole")
    assert curve == {step: expected[step] for step in curve}
    assert len(curve) > 20, "a kill may lose the last lines of a log, not more"
    assert not [path for path in (tmp_path / "parts/checkpoints").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_signal_saves_and_leaves_with_a_status_of_its_own(tmp_path: Path, number: signal.Signals) -> None:
    long = overrides(tmp_path, "asked", "trainer.max_steps=100000", "trainer.val_every_steps=0")
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *long, "callbacks.checkpoint.every_steps=50"],
        env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )
    checkpoint = tmp_path / "asked/checkpoints/last.ckpt"
    deadline = time.monotonic() + 240
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(number)
    _, text = process.communicate(timeout=120)
    assert process.returncode == PREEMPTED, text[-2000:]
    assert text.splitlines()[-1].startswith("stopped by a signal at step ")
    step = torch.load(checkpoint, weights_only=True)["global_step"]
    assert f"step {step:,};" in text.splitlines()[-1]
    out = run(tmp_path, "asked", f"trainer.max_steps={step + 2}", "ckpt_path=auto", "trainer.val_every_steps=0")
    assert out["compute"]["steps"] == step + 2


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[int]]]:
    """Two ranks that are asked to stop, meet a NaN on one of them, a full disk; and groups that do not survive."""
    root = tmp_path_factory.mktemp("faults")
    often = ["trainer.max_steps=8", "trainer.val_every_steps=0", "callbacks.checkpoint.every_steps=2",
             "trainer.devices=2", "strategy.timeout_seconds=60"]
    fsdp, ddp = [*often, "strategy=fsdp_cpu"], [*often, "strategy=ddp_cpu"]
    sharded, soon = "callbacks.checkpoint.layout=sharded", "strategy.timeout_seconds=20"
    groups = {
        "survived": [
            ("signal", "stopped", [*fsdp, "ckpt_path=auto", sharded]),
            ("none", "stopped", [*fsdp, "ckpt_path=auto", sharded]),
            ("nan", "nan", fsdp),
            ("disk", "disk-ddp", ddp),
            ("disk", "disk-fsdp", fsdp),
        ],
        "death": [("death", "death", ddp)],
        "raise": [("raise", "raise", fsdp)],
        "hang": [("hang", "hang", [*fsdp, soon])],
        "hang-first": [("hang-first", "hang-first", [*ddp, soon])],
        "stop": [("stop", "stop", [*ddp, soon])],
    }
    (root / "groups.json").write_text(json.dumps(list(groups.values())))
    statuses = launch(["tests.helpers.faults", "ranks", str(root), str(root / "groups.json")])
    (root / "statuses.json").write_text(json.dumps(statuses))
    return root, dict(zip(groups, statuses, strict=True))


def said(root: Path, group: int, rank: int) -> list[str]:
    """The error lines of a rank."""
    text = (root / f"group-{group}.{rank}").read_text()
    return [line for line in text.splitlines() if line.startswith("error: ")]


def endings(root: Path, name: str, fault: str, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / f"{name}.{fault}.{rank}.json").read_text())
    return found


def test_a_signal_to_one_rank_stops_all_at_the_same_step(faults: Any) -> None:
    root, _ = faults
    assert endings(root, "stopped", "signal", 0)["ended"] == f"exit: {PREEMPTED}"
    assert endings(root, "stopped", "signal", 1)["ended"] == "exit: 0"  # its status would kill the first process
    assert [endings(root, "stopped", "none", rank)["ended"] for rank in (0, 1)] == ["done", "done"]
    results = json.loads((root / "stopped/results.json").read_text())
    assert results["compute"]["steps"] == 8


def test_nan_on_one_rank_ends_all_with_one_message(faults: Any) -> None:
    root, _ = faults
    assert endings(root, "nan", "nan", 0)["ended"].startswith("error: step 5: the training loss or the weights are not")
    assert "last good checkpoint is" in endings(root, "nan", "nan", 0)["ended"]
    assert endings(root, "nan", "nan", 1)["ended"] == "exit: 0"
    ckpt_store.verify(root / "nan/checkpoints/last.ckpt")
    assert torch.load(root / "nan/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4


@pytest.mark.parametrize("name", ["disk-ddp", "disk-fsdp"])
def test_a_full_disk_ends_all_and_leaves_the_checkpoint_before(faults: Any, name: str) -> None:
    root, _ = faults
    assert "last.ckpt: could not be written (File too large); the checkpoint before it is intact" in (
        endings(root, name, "disk", 0)["ended"]
    )
    assert endings(root, name, "disk", 1)["ended"] == "exit: 0"
    ckpt_store.verify(root / name / "checkpoints/last.ckpt")
    assert torch.load(root / name / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2
    assert [path.name for path in (root / name / "checkpoints").iterdir()] == ["last.ckpt"]


def test_a_dead_rank_ends_the_others_with_one_message(faults: Any) -> None:
    root, statuses = faults
    assert statuses["death"] == [0, -signal.SIGKILL]  # the helper of rank 0 survives to write how the run ended
    ended = endings(root, "death", "death", 0)
    assert ended["ended"].startswith("error: rank 1 has ended without a word (process "), ended
    assert "last good checkpoint is" in ended["ended"]
    assert ended["seconds"] < 60
    ckpt_store.verify(root / "death/checkpoints/last.ckpt")


def test_a_rank_that_raises_is_named_with_its_error(faults: Any) -> None:
    root, _ = faults
    assert endings(root, "raise", "raise", 1)["ended"] == "raised: 'a fault of this rank'"
    ended = endings(root, "raise", "raise", 0)
    assert ended["ended"].startswith("error: rank 1 ended with KeyError: 'a fault of this rank'; the last good"), ended
    assert ended["seconds"] < 60
    ckpt_store.verify(root / "raise/checkpoints/last.ckpt")


@pytest.mark.parametrize(("name", "group", "hangs"), [("hang", 3, 1), ("hang-first", 4, 0)])
def test_a_hung_rank_is_named_with_its_place_and_last_collective(
    faults: Any, name: str, group: int, hangs: int
) -> None:
    root, statuses = faults
    assert statuses[name] == [2, 0]
    (line,) = said(root, group, 0)
    assert re.match(
        rf"error: rank {hangs} hangs in step 4 at .*faults\.py:\d+ .*; the last collective it entered is \w+.*"
        rf"; rank {1 - hangs} waits for it in \w+.* \(no progress for 20 s: strategy\.timeout_seconds\)"
        r"; the last good checkpoint is .*last\.ckpt; continue with ckpt_path=auto$",
        line,
    ), line
    assert said(root, group, 1) == []
    ckpt_store.verify(root / name / "checkpoints/last.ckpt")


def test_a_stopped_rank_is_named(faults: Any) -> None:
    root, statuses = faults
    assert statuses["stop"] == [2, -signal.SIGKILL]  # a launcher has to kill it
    (line,) = said(root, 5, 0)
    assert line.startswith("error: rank 1 has not been heard of for "), line
    assert re.search(r"; it was then in step [0-4] and had last entered \w+", line)  # of the beat before it stopped


def test_a_flipped_byte_is_named_before_the_run_goes_on(tmp_path: Path) -> None:
    run(tmp_path, "flipped", "trainer.max_steps=2", "trainer.val_every_steps=0")
    path = tmp_path / "flipped/checkpoints/last.ckpt"
    good = path.read_bytes()
    expected = torch.load(path, weights_only=True)["state_dict"]
    caught = 0
    # The data at 40 places; the archive's headers, which no checksum covers, at its end.
    for place in [*range(97, len(good), len(good) // 40), *range(len(good) - 600, len(good), 7)]:
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        try:
            ckpt_store.verify(path)
        except UserError:
            caught += 1
        else:  # in padding between the tensors: nothing was changed
            found = torch.load(path, weights_only=True)["state_dict"]
            assert all(torch.equal(expected[name], value) for name, value in found.items())
    assert caught > 20
    data = good.index(expected["predictor.denoiser.vocab_embed.embedding"].numpy().tobytes()[:64])
    path.write_bytes(good[:data] + bytes([good[data] ^ 1]) + good[data + 1 :])
    with pytest.raises(UserError, match=r"last\.ckpt: .* does not match its checksum; it is damaged"):
        run(tmp_path, "flipped", "trainer.max_steps=4", "ckpt_path=last")


def test_a_folder_that_cannot_be_written_ends_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, "locked", "trainer.max_steps=2", "trainer.val_every_steps=0")
    real = Path.open

    def refuse(self: Path, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if self.name.endswith(ckpt_store.PARTIAL):  # root may write anywhere: permissions alone would show nothing
            raise OSError(30, "Read-only file system")
        return real(self, mode, *rest, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"could not be written \(Read-only file system\); the checkpoint before it is"):
        run(tmp_path, "locked", "trainer.max_steps=6", "trainer.val_every_steps=0", "ckpt_path=last")
    ckpt_store.verify(tmp_path / "locked/checkpoints/last.ckpt")
