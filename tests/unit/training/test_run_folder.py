"""What is a run's folder and what of it may be deleted: nothing of anyone else's, whatever the folder looks like."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from sm_diffusion.training.run_folder import RunFolder, name_problem, run_of
from sm_diffusion.types import UserError

SETTINGS = {
    "name": "x", "output_dir": "runs/x", "seed": 1, "variant": {"name": "mdlm"}, "soft_mask": {}, "schedule": {},
    "objective": {}, "optim": {}, "trainer": {"max_steps": 3}, "callbacks": {}, "model": {}, "data": {},
}


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}\n")
    return folder


def make_run(folder: Path) -> Path:
    fill(folder, "environment.json", "parameters.txt", "results.json", "checkpoints/last.ckpt", "run_id", "stale")
    fill(folder, "checkpoints/best-3.ckpt", "metrics/version_0/metrics.csv", "plots/loss.png", "heartbeat/verdict.txt")
    fill(folder, "wandb/offline-run-1/run.wandb", "checkpoints/.last.ckpt.partial", "adapter/adapter_config.json")
    (folder / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder


def content(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below a folder."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def config(text: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        fill(folder, "thesis.tex", "checkpoints/last.ckpt")
        (folder / "config.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))

    return write


def without(key: str) -> str:
    return yaml.safe_dump({name: value for name, value in SETTINGS.items() if name != key})


def links_to_a_run(folder: Path) -> None:
    make_run(folder.parent / "real")
    folder.rmdir()
    folder.symlink_to(folder.parent / "real")


def checkpoints_elsewhere(folder: Path) -> None:
    make_run(folder)
    other = fill(folder.parent / "elsewhere", "last.ckpt", "best-9.ckpt")
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    (folder / "checkpoints").rmdir()
    (folder / "checkpoints").symlink_to(other)


def runs_below(folder: Path) -> None:
    for name in ("a", "b", "c/d"):
        make_run(folder / name)


NOT_RUNS: dict[str, Callable[[Path], object]] = {
    "one text": lambda f: fill(f, "thesis.tex"),
    "hidden file": lambda f: fill(f, ".bashrc"),
    "git repository": lambda f: fill(f, ".git/HEAD", "main.py"),
    "empty file": lambda f: (f / "keep").touch(),
    "empty folder inside": lambda f: fill(f, "a/b/c/d"),
    "folder of runs": runs_below,
    "folder of runs with logs": lambda f: (runs_below(f), fill(f, ".logs/a.log")),
    "checkpoints only": lambda f: fill(f, "checkpoints/last.ckpt", "checkpoints/best-3.ckpt"),
    "results only": lambda f: fill(f, "results.json"),
    "evaluation": lambda f: fill(f, "results.json", "records/m/nfe_8/generations-00000.jsonl"),
    "metrics only": lambda f: fill(f, "metrics/version_0/metrics.csv"),
    "wandb only": lambda f: fill(f, "wandb/run-1/run.wandb"),
    "adapter only": lambda f: fill(f, "adapter/adapter_config.json"),
    "plots only": lambda f: fill(f, "plots/loss.png"),
    "model folder": lambda f: fill(f, "config.json", "model.safetensors", "tokenizer.json"),
    "another Lightning project": lambda f: fill(f, "lightning_logs/version_0/hparams.yaml", "checkpoints/last.ckpt"),
    "another Hydra project": config(yaml.safe_dump({"name": "x", "seed": 1, "trainer": {}, "model": {}, "optim": {}})),
    "config of another thing": config("name: x\n"),
    "config without variant": config(without("variant")),
    "config without objective": config(without("objective")),
    "config without output_dir": config(without("output_dir")),
    "config is a list": config("- name\n- output_dir\n"),
    "config is text": config(" ".join(SETTINGS)),
    "config is empty": config(""),
    "config is cut": config(yaml.safe_dump(SETTINGS)[:60]),
    "config is not YAML": config("{[\n"),
    "config is not UTF-8": config("name: \udcff\n"),
    "config is a folder": lambda f: fill(f, "config.yaml/inner"),
    "config is a dangling link": lambda f: (fill(f, "x"), (f / "config.yaml").symlink_to("gone")),
    "config is huge": config(yaml.safe_dump(SETTINGS) + "#" + "x" * 2**21),
    "source code": lambda f: fill(f, "train.py", "src/model.py", "README.md"),
    "link to a run": links_to_a_run,
    "run whose checkpoints lie elsewhere": checkpoints_elsewhere,
    "file": lambda f: (f.rmdir(), f.write_text("mine")),
    "dangling link": lambda f: (f.rmdir(), f.symlink_to("gone")),
}


@pytest.mark.parametrize("kind", NOT_RUNS)
def test_overwrite_deletes_nothing_that_is_no_run(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "precious"
    folder.mkdir()
    NOT_RUNS[kind](folder)
    before = content(tmp_path)
    run = RunFolder(folder)
    assert run.problem(key="output_dir=precious", overwrite=True, continues=False) is not None
    if folder.exists():
        with pytest.raises(UserError, match="output_dir"):
            run.clear()
    assert content(tmp_path) == before


def test_overwrite_of_a_run_deletes_what_runs_write_and_nothing_else(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    mine = ("notes.md", "checkpoints/paper.ckpt", "wandb/notes", "metrics/version_0/mine.csv", "model.safetensors")
    fill(folder, *mine)
    make_run(folder / "child")
    kept = {name for name in content(folder) if name in mine or name.startswith("child/")}
    left = RunFolder(folder).clear()
    assert set(content(folder)) == kept
    assert left == ["checkpoints", "child", "metrics", "model.safetensors", "notes.md", "wandb"]
    assert RunFolder(folder / "child").is_run()


def test_a_file_that_is_a_link_loses_the_link_only(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    kept = fill(tmp_path, "kept.ckpt") / "kept.ckpt"
    (folder / "checkpoints/best-3.ckpt").unlink()
    (folder / "checkpoints/best-3.ckpt").symlink_to(kept)
    RunFolder(folder).clear()
    assert kept.exists()
    assert not (folder / "checkpoints").exists()


def test_an_interrupted_deletion_leaves_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_run(tmp_path / "run")
    from sm_diffusion.training import run_folder

    real, count = run_folder.delete, [0]

    def delete(path: Path) -> None:
        count[0] += 1
        if count[0] > 5:
            raise OSError("killed")
        real(path)

    monkeypatch.setattr(run_folder, "delete", delete)
    with pytest.raises(OSError, match="killed"):
        RunFolder(folder).clear()
    assert RunFolder(folder).is_run()


@pytest.mark.parametrize("name", ["config.yaml", "environment.json", "parameters.txt", "results.json"])
def test_a_new_run_does_not_write_over_files_of_others(tmp_path: Path, name: str) -> None:
    fill(tmp_path, name)
    problem = RunFolder(tmp_path).problem(key="output_dir=x", overwrite=False, continues=False)
    assert problem is not None
    assert name in problem


def test_folders_that_a_run_may_start_in(tmp_path: Path) -> None:
    fill(tmp_path / "notes", "notes.txt")
    (tmp_path / "empty").mkdir()
    for name in ("notes", "empty", "none"):
        assert RunFolder(tmp_path / name).problem(key="x", overwrite=False, continues=False) is None
    for name in ("empty", "none"):
        assert RunFolder(tmp_path / name).problem(key="x", overwrite=True, continues=False) is None


@pytest.mark.parametrize("target", ["gone", "last.ckpt"])
def test_a_last_checkpoint_that_links_to_nothing_is_refused(tmp_path: Path, target: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "checkpoints/last.ckpt").unlink()
    (folder / "checkpoints/last.ckpt").symlink_to(target)
    problem = RunFolder(folder).problem(key="output_dir=x", overwrite=False, continues=True)
    assert problem is not None
    assert "last.ckpt is a link that leads nowhere" in problem


@pytest.mark.parametrize("name", ["", " ", ".", "..", "../x", "a/../b", "a/..", "/tmp", "a//b", "a/", "./a", "a\nb"])
def test_names_that_are_refused(name: str) -> None:
    assert "name=" in str(name_problem(name))


@pytest.mark.parametrize("name", ["sm", "a/b", "a.b", "..a", "李明", "my run", "seed=1,x"])
def test_names_that_are_taken(name: str) -> None:
    assert name_problem(name) is None


HOLDER = """
import sys
from sm_diffusion.training.run_folder import RunFolder
with RunFolder(sys.argv[1]).claimed():
    print("held", flush=True)
    sys.stdin.readline()
"""


def test_a_second_process_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        refused = pytest.raises(UserError, match=rf"another process \({first.pid} on .*\) is writing this run")
        with refused, RunFolder(folder).claimed():
            pass
        first.kill()
    with RunFolder(folder).claimed():  # the lock of a killed process is none
        fill(folder, "config.yaml")
    assert (folder / "config.yaml").exists()


def test_a_folder_claimed_for_nothing_goes_again(tmp_path: Path) -> None:
    with pytest.raises(UserError), RunFolder(tmp_path / "a/b").claimed():
        raise UserError("refused")
    assert not (tmp_path / "a").exists()


def test_the_id_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_SWEEP_ID", raising=False)
    monkeypatch.setenv("WANDB_RUN_ID", "not-a-sweep")
    a, b = RunFolder(tmp_path / "a"), RunFolder(tmp_path / "b")
    first = a.run_id(name="n", continues=False)
    assert a.run_id(name="n", continues=True) == first != b.run_id(name="n", continues=False)
    (a.path / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    a.clear()
    assert a.run_id(name="n", continues=False) != first
    old = make_run(tmp_path / "old")
    (old / "run_id").unlink()
    assert RunFolder(old).run_id(name="e/n", continues=True) == "e-n"  # begun by an earlier version
    monkeypatch.setenv("WANDB_SWEEP_ID", "s")
    assert RunFolder(tmp_path / "c").run_id(name="n", continues=False) == "not-a-sweep"


def test_names_are_those_of_earlier_runs() -> None:
    run = RunFolder("run")
    named = (run.config, run.environment, run.parameters, run.results, run.last, run.metrics, run.plots, run.adapter)
    assert [str(path.relative_to("run")) for path in named] == [
        "config.yaml", "environment.json", "parameters.txt", "results.json", "checkpoints/last.ckpt", "metrics",
        "plots", "adapter",
    ]  # fmt: skip


def test_a_checkpoint_knows_its_run() -> None:
    found = run_of(Path("runs/a/checkpoints/last.ckpt"))
    assert found is not None
    assert found.path == Path("runs/a")
    assert run_of(Path("elsewhere/last.ckpt")) is None


def test_what_is_shown_is_named_in_order(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    fill(tmp_path, "plots/b.png", "plots/a.png", "c.png", "checkpoints/best-3.ckpt", "results.json")
    assert run.shown() == [run.results, tmp_path / "c.png", run.plots / "a.png", run.plots / "b.png"]


def test_asking_for_a_name_loads_no_framework() -> None:
    program = "import sys, sm_diffusion.training.run_folder; print({'torch', 'lightning', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
