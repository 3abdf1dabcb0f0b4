"""Which results were made by the same code: rows of two code versions are not averaged or compared."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from sm_diffusion.paths import ROOT

UNKNOWN = "unknown"
# What computes a result. Settings are recorded whole with every run and compared by themselves; these only read.
SOURCES = ("train.py", "eval.py", "sm_diffusion/")
_READS_ONLY = tuple(f"sm_diffusion/{name}" for name in ("reproduction", "planning", "cli"))


def version_of(results: Mapping[str, Any]) -> str:
    """Ten digits of the commit, `+changes` where the sources differed from it, or `unknown`."""
    commit = results.get("git_commit")
    if not commit:
        return UNKNOWN
    return f"{str(commit)[:10]}{'+changes' if results.get('git_dirty') else ''}"


def distinct_versions(results: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """version -> the label it is shown under. Commits whose sources are the same files share one label.

    Only this checkout's history can tell; a commit it does not know stands for itself.
    """
    labels: dict[str, str] = {}
    by_sources: dict[str, str] = {}
    for result in results:
        version = version_of(result)
        if version in labels:
            continue
        same = None if "+" in version or version == UNKNOWN else _sources(str(result["git_commit"]))
        labels[version] = version if same is None else by_sources.setdefault(same, version)
    return labels


@functools.cache
def _sources(commit: str) -> str | None:
    """Names and hashes of the source files of a commit; None where it is not known here."""
    if not commit.isalnum():
        return None
    try:
        command = ["git", "-C", str(ROOT), "ls-tree", commit, *SOURCES]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [line for line in done.stdout.splitlines() if not line.endswith(tuple(f"\t{name}" for name in _READS_ONLY))]
    return "\n".join(lines) or None
