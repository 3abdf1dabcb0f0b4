"""The folder of a run: what its files are called, whether a folder is one, what may be deleted, who writes it.

Every deletion of a run's files goes through `RunFolder.clear`, which knows them by name: a folder is a run of this
program when its config.yaml holds the settings of a training run, and only files that such a run writes are deleted.
What else lies in the folder (notes, exports, runs below it) stays.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from sm_diffusion.files import delete, write_text
from sm_diffusion.types import UserError

CONFIG, ENVIRONMENT, PARAMETERS, RESULTS = "config.yaml", "environment.json", "parameters.txt", "results.json"
CHECKPOINTS, HEARTBEAT, ADAPTER, RUN_ID, LOCK = "checkpoints", "heartbeat", "adapter", "run_id", ".lock"
METRICS, PROFILE, PLOTS = "metrics", "profile", "plots"
STALE_MARK = "stale"  # what the run started from was trained again

# Settings that every version of train.py has written into config.yaml; together nobody else has them.
_SIGNATURE = frozenset(
    {"name", "output_dir", "seed", "variant", "soft_mask", "schedule", "objective", "optim", "trainer", "callbacks"}
)
_BEATS = ("rank-*.json", ".rank-*.tmp", "verdict.txt")
# What a run writes, as patterns below its folder. config.yaml comes last: a folder whose deletion was interrupted is
# still known for a run. Of a folder in the list the listed content goes, then the folder itself if it is empty.
_WRITTEN: tuple[tuple[str, tuple[str, ...]], ...] = (
    (CHECKPOINTS, ("last.ckpt", "last-v*.ckpt", "best-*.ckpt", "step-*.ckpt", ".*.partial", ".*.old", ".*.trash")),
    (METRICS, ("version_*/metrics.csv", "version_*/hparams.yaml", "version_*")),
    ("wandb", ("run-*", "offline-run-*", "latest-run", "debug*.log", "settings")),
    (HEARTBEAT, _BEATS),
    (PROFILE, ("trace-rank*.json", "summary-rank*.txt")),
    (PLOTS, ("loss.*", "omegas.*", "lambda.*")),
    (ADAPTER, ("adapter_config.json", "adapter_model.safetensors", "smd_adapter.json", "soft_mask.safetensors",
               "transparency_config.json", "smd_model.json", "tokenizer.json", "tokenizer_config.json",
               "special_tokens_map.json", "vocab.json", "merges.txt", "added_tokens.json", "chat_template.jinja",
               "README.md")),
    ("", (RESULTS, ENVIRONMENT, PARAMETERS, STALE_MARK, RUN_ID, CONFIG)),
)  # fmt: skip
# A new run would write over these. heartbeat, logs and the lock belong to no one in particular.
_OVERWRITTEN = (CONFIG, ENVIRONMENT, PARAMETERS, RESULTS, CHECKPOINTS, ADAPTER)
_WAIT_SECONDS = 10.0  # for a lock whose owner is gone: its reader processes may outlive it for some seconds


class RunFolder:
    """One run's folder, there or not.

    Args:
        path: of the folder; `output_dir` of the configuration.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: FileLock | None = None

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / CONFIG

    @property
    def environment(self) -> Path:
        """Versions, machine, and the digest of the checkpoint it began with; written at the start."""
        return self.path / ENVIRONMENT

    @property
    def parameters(self) -> Path:
        """One line a parameter: its size, shape and name."""
        return self.path / PARAMETERS

    @property
    def results(self) -> Path:
        """What a finished run says about itself; absent while it runs."""
        return self.path / RESULTS

    @property
    def checkpoints(self) -> Path:
        return self.path / CHECKPOINTS

    @property
    def last(self) -> Path:
        """The newest checkpoint: a file, or a folder of shards."""
        return self.checkpoints / "last.ckpt"

    @property
    def metrics(self) -> Path:
        """The CSV logger's folder: version_0, and one more each time the run was continued."""
        return self.path / METRICS

    @property
    def plots(self) -> Path:
        return self.path / PLOTS

    @property
    def adapter(self) -> Path:
        """The adapter folder that a fine-tuning with adapters leaves."""
        return self.path / ADAPTER

    @property
    def heartbeat(self) -> Path:
        """What its processes tell one another; there while the run lasts."""
        return self.path / HEARTBEAT

    @property
    def profile(self) -> Path:
        """The traces that `trainer.profile` asks for."""
        return self.path / PROFILE

    @property
    def stale_mark(self) -> Path:
        """Its presence says that the run this one began from was trained again."""
        return self.path / STALE_MARK

    def shown(self) -> list[Path]:
        """What people look for in it, where it is there: results, figures, the last checkpoint."""
        figures = [*sorted(self.path.glob("*.png")), *sorted(self.plots.glob("*.png"))]
        return [path for path in (self.results, *figures, self.last) if path.exists()]

    # ------------------------------------------------------------------------------------------------- what it holds

    def is_run(self) -> bool:
        """Whether the folder holds a run of this program, finished or not."""
        return set(self._settings()) >= _SIGNATURE

    def _settings(self) -> dict[str, Any]:
        """Of config.yaml; empty for any file that holds no mapping."""
        try:
            if not self.config.is_file() or self.config.stat().st_size > 2**20:
                return {}
            found = yaml.safe_load(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            return {}
        return found if isinstance(found, dict) else {}

    def problem(self, *, key: str, overwrite: bool, continues: bool) -> str | None:
        """Why a run must not start here; None: it may. Looks, touches nothing.

        Args:
            key: What the user set to come here, as `output_dir=runs/x`.
            overwrite: The earlier run shall be deleted.
            continues: The run goes on from a checkpoint.
        """
        if not self.path.exists():
            if self.path.is_symlink():
                return f"{key}: a link that leads nowhere; remove it or mend it"
            return None
        if not self.path.is_dir():
            return f"{key}: a file, not a folder; choose another output_dir"
        if link := self._link():
            return f"{key}: {link} is a link that leads nowhere or in a circle; mend it or remove it"
        if self.is_run():
            return self._inside_out(key) if overwrite else None
        names = sorted(path.name for path in self.path.iterdir() if path.name not in (LOCK, HEARTBEAT, STALE_MARK))
        taken = [name for name in names if name in _OVERWRITTEN]
        if overwrite and names:
            return (
                f"{key}: no run of this program (it holds {_some(names)}), so overwrite=true deletes nothing there; "
                "choose another output_dir, or delete the folder yourself"
            )
        if taken and not continues:
            return (
                f"{key}: holds {_some(taken)} of something that is no run of this program; "
                "choose another output_dir, or move them away"
            )
        if continues and (self.config.exists() and self._settings()):
            return f"{key}: its {CONFIG} is not that of a run of this program; choose another output_dir"
        return None

    def _link(self) -> Path | None:
        """A checkpoint or a file of the run that is a link to nothing."""
        own = [self.path / name for name in (*_OVERWRITTEN, RUN_ID)]
        inner = sorted(self.checkpoints.glob("*.ckpt")) if _is_folder(self.checkpoints) else []
        inner += [self.last]
        return next((path for path in [*own, *inner] if path.is_symlink() and not _exists(path)), None)

    def _inside_out(self, key: str) -> str | None:
        """A folder of the run that is a link leads to files which may be another run's."""
        for name in ("", *(name for name, _ in _WRITTEN)):
            if (self.path / name).is_symlink():
                return f"{key}: {self.path / name} is a link, whose target overwrite=true does not delete; remove it"
        return None

    # ----------------------------------------------------------------------------------------------------- deletion

    def clear(self) -> list[str]:
        """Delete the files of the run, and nothing else.

        Returns:
            Names that were left because no run writes them.

        Raises:
            UserError: The folder is no run of this program; nothing was deleted.
        """
        if not self.path.exists():
            return []
        if problem := self.problem(key=f"output_dir={self.path}", overwrite=True, continues=False):
            raise UserError(problem)
        for name, patterns in _WRITTEN:
            folder = self.path / name
            for pattern in patterns:
                for path in sorted(folder.glob(pattern)):
                    if pattern != "version_*":
                        delete(path)
                    elif path.is_dir() and not any(path.iterdir()):
                        path.rmdir()
            if name and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        return sorted(path.name for path in self.path.iterdir() if path.name != LOCK)

    def forget_beats(self) -> None:
        """Delete what the processes of an earlier program wrote about themselves."""
        folder = self.heartbeat
        for pattern in _BEATS:
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)
        if _is_folder(folder) and not any(folder.iterdir()):
            folder.rmdir()

    # -------------------------------------------------------------------------------------------------------- owner

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Only one process at a time writes the folder. A folder that was made for this and stayed empty goes again.

        Raises:
            UserError: Another process writes it.
        """
        made = _make(self.path)
        lock = FileLock(str(self.path / LOCK))
        try:
            self._acquire(lock)
            yield
        finally:
            lock.release()
            if made:
                self._unmake(made)

    def _acquire(self, lock: FileLock) -> None:
        path, waited = self.path / LOCK, 0.0
        while True:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                owner = _owner(path)
                if owner is None or waited >= _WAIT_SECONDS:
                    by = f" ({owner})" if owner else ""
                    raise UserError(
                        f"output_dir={self.path}: another process{by} is writing this run; wait for it, or give this "
                        "one another name"
                    ) from None
                if _alive(owner):
                    waited = _WAIT_SECONDS
                time.sleep(0.2)
                waited += 0.2
            except (NotImplementedError, OSError):  # a file system without locks
                return
            else:
                path.write_text(f"{socket.gethostname()} {os.getpid()}\n", encoding="utf-8")
                return

    def _unmake(self, made: list[Path]) -> None:
        if any(path.name != LOCK for path in self.path.iterdir()):
            return
        (self.path / LOCK).unlink(missing_ok=True)
        for folder in made:
            if any(folder.iterdir()):
                return
            folder.rmdir()

    # ----------------------------------------------------------------------------------------------------------- id

    def run_id(self, *, name: str, continues: bool) -> str:
        """The run's id at Weights & Biases: made once a run, kept when it is continued, gone when it is overwritten.

        Args:
            name: Of the run. Runs begun before there were ids were known by it.
            continues: The run goes on from a checkpoint.
        """
        noted = self.path / RUN_ID
        if noted.is_file():
            return noted.read_text(encoding="utf-8").strip()
        agent = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        found = agent or (name.replace("/", "-") if continues and self.is_run() else uuid.uuid4().hex[:12])
        write_text(noted, found + "\n")
        return found


def run_of(checkpoint: Path) -> RunFolder | None:
    """The run whose checkpoint this is, judged by its place; None: it lies elsewhere."""
    return RunFolder(checkpoint.parents[1]) if checkpoint.parent.name == CHECKPOINTS else None


def name_problem(name: str) -> str | None:
    """What is wrong with the name of a run, whose folder is runs/NAME; None: nothing."""
    parts = name.split("/")
    if name.strip() and all(part.strip() not in ("", ".", "..") for part in parts) and name.isprintable():
        return None
    return f"name={name}: must name a folder below runs/: no empty part, no . or .., no control characters"


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, RuntimeError):  # a circle of links
        return False


def _is_folder(path: Path) -> bool:
    return _exists(path) and path.is_dir()


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _make(folder: Path) -> list[Path]:
    """Make a folder with its parents; those that were made, innermost first."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output_dir={folder}: cannot be made ({error.strerror}); choose another output_dir") from None
    return missing


def _owner(lock: Path) -> str | None:
    try:
        host, _, process = lock.read_text(encoding="utf-8").strip().partition(" ")
    except (OSError, ValueError):
        return None
    return f"{process} on {host}" if process.isdigit() else None


def _alive(owner: str) -> bool:
    """Whether a process is there; True for one of another machine."""
    process, _, host = owner.partition(" on ")
    if host != socket.gethostname():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
