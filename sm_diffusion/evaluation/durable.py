"""A folder of JSON lines that survives a kill: whole lines only, one key that says what they are, a file a rank."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sm_diffusion.evaluation.results import read_json, write_json
from sm_diffusion.types import UserError


class KeyedFolder:
    """A folder and the key of what it holds.

    key:     everything that decides the lines; a folder with another key is refused.
    setting: name of the user's setting that chose the folder, for the message.
    what:    plural noun of what is kept, which also names the file of the key (`<what>.json`).
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], *, setting: str, what: str) -> None:
        self.folder = folder
        self.key = json.loads(json.dumps(key))
        path = folder / f"{what}.json"
        if not path.exists():
            write_json(path, self.key)
            return
        found = read_json(path)
        if found == self.key:
            return
        theirs, ours = flat(found if isinstance(found, dict) else {}), flat(self.key)
        name = next(name for name in [*ours, *theirs] if theirs.get(name) != ours.get(name))
        there, here = (str(side.get(name))[:12] for side in (theirs, ours))
        other = "another checkpoint" if name == "checkpoint_sha256" else f"another {name}"
        raise UserError(
            f"{setting}={folder}: holds {what} of {other} ({there} there, {here} here); "
            "choose another folder, or delete this one"
        )

    def lines(self, stem: str) -> Iterator[dict[str, Any]]:
        """Of every rank's file of that stem. A line cut off by a kill does not count."""
        for path in sorted(self.folder.glob(f"{stem}-*.jsonl")):
            for line in path.read_bytes().split(b"\n")[:-1]:  # the last piece is empty, or torn
                try:
                    yield json.loads(line)
                except ValueError:
                    raise UserError(f"{path}: damaged; delete it to have its {stem}s made again") from None

    def append(self, stem: str, rows: Sequence[Mapping[str, Any]], *, rank: int) -> None:
        """Add whole lines to this rank's file, on disk when this returns; a torn end is cut off first."""
        path = self.folder / f"{stem}-{rank:05d}.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            with path.open("ab+") as file:
                _cut_torn_line(file)
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            reason = f"cannot be written ({error.strerror}); free space or choose another folder"
            raise UserError(f"{path}: {reason}") from None


def flat(key: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"sampler": {"eta": 1}} as {"sampler.eta": 1}."""
    out: dict[str, Any] = {}
    for name, value in key.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return out


def key_sha256(key: Mapping[str, Any]) -> str:
    """Hex digest of a key's content."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _cut_torn_line(file: Any) -> None:
    file.seek(0)
    content = file.read()
    file.truncate(content.rfind(b"\n") + 1)
    file.seek(0, os.SEEK_END)
