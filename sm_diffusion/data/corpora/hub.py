"""Where a corpus's files are: a local folder in the hub's layout, or a dataset repository of the Hugging Face hub."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from sm_diffusion.data.corpora.file_digests import digest_files
from sm_diffusion.data.corpora.records import SUFFIXES, Root, suffix_of
from sm_diffusion.data.stores.cache import Progress
from sm_diffusion.files import read_object, write_json
from sm_diffusion.types import UserError


class FileInfo(NamedTuple):
    """name: relative to the root, with forward slashes.     size: bytes.
    digest: sha256 of the content of a local file; '' on the hub, where the commit says it.
    """

    name: str
    size: int
    digest: str = ""


class Located(NamedTuple):
    """A corpus's files at one fixed state. revision: the hub's commit; '' for a local folder."""

    root: Root
    files: list[FileInfo]
    revision: str


def matching(files: Sequence[FileInfo], patterns: Sequence[str]) -> list[FileInfo]:
    """The readable files that match any of the patterns (`*` crosses folders), sorted by name."""
    return sorted(
        file for file in files if suffix_of(file.name) and any(fnmatch(file.name, pattern) for pattern in patterns)
    )


def add_digests(folder: Path, files: Sequence[FileInfo], cache_dir: Path | None) -> list[FileInfo]:
    """The files of a folder with the digests of their content."""
    digests = digest_files(folder, [file.name for file in files], cache_dir)
    return [file._replace(digest=digest) for file, digest in zip(files, digests, strict=True)]


class Location(ABC):
    """Finds the files of a corpus."""

    @abstractmethod
    def locate(self, patterns: Sequence[str]) -> Located:
        """The files that match. UserError if there are none or they cannot be reached."""


@dataclass(frozen=True)
class LocalFolder(Location):
    """A folder in the hub's layout. Hidden files and folders are skipped.

    cache_dir: where digests are kept, so that a file is read for its digest once and again when it changed; None:
               nowhere.
    """

    path: str
    cache_dir: Path | None = None

    def locate(self, patterns: Sequence[str]) -> Located:
        folder = Path(self.path).expanduser().absolute()
        if not folder.is_dir():
            raise UserError(f"data.path={self.path}: no such folder; paths start at {Path.cwd()}")
        every = [
            FileInfo(path.relative_to(folder).as_posix(), path.stat().st_size)
            for path in folder.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        ]
        found = matching(every, patterns)
        if not found:
            seen = ", ".join(file.name for file in sorted(every)[:3]) or "nothing"
            raise UserError(
                f"data.path={self.path}: no file matches {' or '.join(patterns)} (it holds {seen}): "
                f"put the hub's files there, or set data.train_files; readable: {', '.join(SUFFIXES)}"
            )
        return Located(Root(str(folder)), add_digests(folder, found, self.cache_dir), "")


@dataclass(frozen=True)
class HubRepository(Location):
    """A dataset repository of the hub.

    revision:  branch, tag or commit. A name is resolved to a commit once and noted in `cache_dir`, so later runs read
               the same files, without the network once they are downloaded.
    download:  False: files are read where they are (streaming).
    """

    repo: str
    revision: str
    cache_dir: Path
    download: bool = True

    def locate(self, patterns: Sequence[str]) -> Located:
        note = self._folder / "revision.json"
        if note.is_file():
            commit, every = _read_note(note)
        else:
            commit, every = self._resolve(patterns)
            write_json(note, {"commit": commit, "files": every})
        found = matching(every, patterns)
        if not found:
            raise UserError(
                f"data.repo={self.repo}: no file matches {' or '.join(patterns)} at {commit[:12]}: set "
                f"data.train_files and data.validation_files, or data.revision=refs/convert/parquet"
            )
        if not self.download:
            return Located(Root(f"hf://datasets/{self.repo}@{commit}"), found, commit)
        return Located(Root(str(self._folder / "files")), found, commit)

    def fetch(self, located: Located, patterns: Sequence[str]) -> None:
        """Downloads what is not there yet; goes on where it was interrupted."""
        from huggingface_hub import hf_hub_download

        progress, total, done = Progress(), sum(file.size for file in located.files), 0
        for file in located.files:
            path = Path(located.root.url) / file.name
            if not path.is_file() or path.stat().st_size != file.size:
                try:
                    hf_hub_download(
                        self.repo,
                        file.name,
                        repo_type="dataset",
                        revision=located.revision,
                        local_dir=located.root.url,
                        endpoint=_endpoint(),
                    )
                except Exception as error:
                    raise self._unreachable(error, patterns) from None
            done += file.size
            progress.tell(f"downloading {self.repo}: {done / 1e9:.2f} of {total / 1e9:.2f} GB")

    @property
    def _folder(self) -> Path:
        return self.cache_dir / "hub" / f"{self.repo}@{self.revision}".replace("/", "--")

    def _resolve(self, patterns: Sequence[str]) -> tuple[str, list[FileInfo]]:
        from huggingface_hub import HfApi

        try:
            info: Any = HfApi(endpoint=_endpoint()).dataset_info(
                self.repo, revision=self.revision, files_metadata=True, timeout=20
            )
        except Exception as error:  # the client raises its own, its HTTP library's and the system's errors
            raise self._unreachable(error, patterns) from None
        return info.sha, [FileInfo(file.rfilename, file.size or 0) for file in info.siblings]

    def _unreachable(self, error: Exception, patterns: Sequence[str]) -> UserError:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        return UserError(
            f"data.repo={self.repo}: the hub gave nothing: tried {_endpoint()}/datasets/{self.repo} at revision "
            f"{self.revision} ({type(error).__name__}: {reason}): log in with `hf auth login` if it is gated, or "
            f"download the files that match {' or '.join(patterns)} elsewhere and set data.path=FOLDER"
        )


def _read_note(note: Path) -> tuple[str, list[FileInfo]]:
    advice = "delete it to have the hub asked again"
    stored = read_object(note, advice=advice)
    try:
        return str(stored["commit"]), [FileInfo(*file) for file in stored["files"]]
    except (KeyError, TypeError):
        raise UserError(f"{note}: not what the hub said; {advice}") from None


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
