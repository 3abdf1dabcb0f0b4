"""`results.json`: what a finished run says about itself, and where it was made.

JSON has no NaN and no infinity. They are written as the strings "nan", "inf" and "-inf", and read back as floats, so
that every JSON reader can open the file and no bad number is lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import numbers
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sm_diffusion.paths import ROOT
from sm_diffusion.types import UserError

PACKAGES = (
    "torch",
    "lightning",
    "torchmetrics",
    "hydra-core",
    "omegaconf",
    "transformers",
    "tokenizers",
    "datasets",
    "safetensors",
    "numpy",
)
SOURCES = ("sm_diffusion", "conf", "experiments", "train.py", "eval.py")
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
_NUMBER_SECTIONS = ("metrics", "compute", "omegas")


# ------------------------------------------------------------------------------------------------------ environment


def environment() -> dict[str, Any]:
    """Git commit, whether the sources differ from it, Python and package versions, the machine. No host name.

    Keys: git_commit (40 hex digits, or null outside a git checkout), git_dirty (or null), python, versions, machine.
    """
    commit, dirty = git_state(ROOT)
    return {
        "git_commit": commit,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "versions": package_versions(),
        "machine": machine(),
    }


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """(commit, dirty) of the checkout whose top folder is `root`; (None, None) where there is none.

    Dirty: a source file is changed or not committed. Notes and results lying about do not count.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return None, None
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", *SOURCES)
    return commit, None if changes is None else bool(changes)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that decide a result, and this project's own."""
    from sm_diffusion import __version__

    versions = {"sm-diffusion": __version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def machine() -> dict[str, Any]:
    """cpu (model), cores (usable by this process), memory_gib, gpus (names), platform."""
    import torch  # here, so that tools which only read results start at once

    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "gpus": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "platform": platform.platform(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError):
        return None


# ------------------------------------------------------------------------------------------------------------ files


def write_json(path: Path, obj: Any) -> None:
    """Write `obj` so that a reader sees the old file or the whole new one, whatever happens in between.

    Raises UserError naming the file when it cannot be written (no permission, disk full); the old file survives.
    """
    text = json.dumps(_plain(obj), indent=2, allow_nan=False) + "\n"
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space or choose another folder") from None


def _plain(obj: Any) -> Any:
    if obj is None or isinstance(obj, bool | int | str):
        return obj
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    if isinstance(obj, Path):
        return str(obj)
    if isinstance(obj, numbers.Integral):
        return int(obj)
    if isinstance(obj, numbers.Real):
        value = float(obj)
        return value if math.isfinite(value) else str(value)
    raise TypeError(f"cannot be written as JSON: {type(obj).__name__}")


def read_json(path: Path) -> Any:
    """The content of a JSON file; UserError naming the file when it is missing or broken."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}); delete it to have it made again") from None


def read_results(path: Path) -> dict[str, Any]:
    """A run's results.json; numbers that JSON cannot spell come back as NaN and infinities."""
    results = read_json(path)
    if not isinstance(results, dict) or not isinstance(results.get("metrics"), dict):
        raise UserError(f'{path}: not a results file (no "metrics"); delete it to have it made again')
    for section in _NUMBER_SECTIONS:
        if isinstance(results.get(section), dict):
            results[section] = {
                key: _NON_FINITE.get(value, value) if isinstance(value, str) else value
                for key, value in results[section].items()
            }
    return results


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


# ------------------------------------------------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None when n < 2) and number of runs. NaN stays NaN."""

    mean: float
    std: float | None
    n: int


def spread(values: Sequence[float]) -> Spread:
    """Of at least one value. A value that is not finite makes the mean so too, never silently dropped."""
    if not values:
        raise ValueError("no values")
    if not all(math.isfinite(value) for value in values):
        return Spread(math.fsum(values) / len(values), math.nan if len(values) > 1 else None, len(values))
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, len(values))


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Spread | None:
    """Of a - b over the seeds both have; None when they share none. Pairing removes what a seed does to both."""
    seeds = sorted(set(a) & set(b))
    return spread([a[seed] - b[seed] for seed in seeds]) if seeds else None
