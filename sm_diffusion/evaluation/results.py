"""`results.json`: what a finished run says about itself, and where it was made.

Numbers that JSON cannot spell, which `files.write_json` writes as "nan", "inf" and "-inf", are read back as floats.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from sm_diffusion.files import read_json
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


def read_results(path: Path) -> dict[str, Any]:
    """A run's results.json; numbers that JSON cannot spell come back as NaN and infinities."""
    results = read_json(path, advice="delete it to have it made again")
    if not isinstance(results, dict) or not isinstance(results.get("metrics"), dict):
        raise UserError(f'{path}: not a results file (no "metrics"); delete it to have it made again')
    for section in _NUMBER_SECTIONS:
        if isinstance(results.get(section), dict):
            results[section] = {
                key: _NON_FINITE.get(value, value) if isinstance(value, str) else value
                for key, value in results[section].items()
            }
    return results


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
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
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
