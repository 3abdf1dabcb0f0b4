"""Caches of local files follow their content, and a file that did not change is not read for its digest again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sm_diffusion.data.chat.mixes import ChatMix, MessageFiles
from sm_diffusion.data.corpora import file_digests as digests
from sm_diffusion.data.corpora.file_corpus import CorpusFiles, FileCorpus
from sm_diffusion.data.corpora.filters import RecordFilter
from sm_diffusion.data.corpora.hub import LocalFolder
from sm_diffusion.types import UserError
from tests.helpers.data import one_line, shard_preparer, write_jsonl


def corpus(root: Path) -> FileCorpus:
    return FileCorpus(
        name="local",
        location=LocalFolder(str(root / "text"), root / "cache"),
        files=CorpusFiles(train_files=("*.jsonl",), validation_documents=5, slice_bytes=500),
        record_filter=RecordFilter(text_field="text"),
    )


def write(root: Path, word: str, *, times: tuple[int, int] | None = None) -> Path:
    path = write_jsonl(root / "text" / "a.jsonl", [{"text": f"{word} {number:04d}"} for number in range(40)])
    if times is not None:
        os.utime(path, ns=times)
    return path


def first_row(root: Path) -> bytes:
    cache = shard_preparer(corpus(root), root / "cache").prepare(workers=1)
    return bytes(cache.train.rows([0])[0].tolist()[:8])


@pytest.mark.parametrize("disguised", [False, True], ids=["edited", "with the old time put back"])
def test_a_changed_file_of_equal_size_is_not_served_from_the_cache(tmp_path: Path, disguised: bool) -> None:
    path = write(tmp_path, "old")
    before = path.stat()
    assert first_row(tmp_path).startswith(b"old 0000")
    write(tmp_path, "new", times=(before.st_atime_ns, before.st_mtime_ns) if disguised else None)
    assert path.stat().st_size == before.st_size
    assert first_row(tmp_path).startswith(b"new 0000")
    write(tmp_path, "old")
    assert first_row(tmp_path).startswith(b"old 0000")
    folders = [path for path in (tmp_path / "cache" / "prepared").iterdir() if path.is_dir()]
    assert len(folders) == 2, "the first shards serve again"


def test_unchanged_files_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "old")
    write_jsonl(tmp_path / "text" / "b.jsonl", [{"text": "other"}])
    first = corpus(tmp_path).fingerprint()
    read = []
    whole = digests.sha256_of
    monkeypatch.setattr(digests, "sha256_of", lambda path: read.append(path.name) or whole(path))
    assert corpus(tmp_path).fingerprint() == first
    assert read == []
    write_jsonl(tmp_path / "text" / "b.jsonl", [{"text": "OTHER"}])
    assert corpus(tmp_path).fingerprint() != first
    assert read == ["b.jsonl"]
    (note,) = (tmp_path / "cache" / "local").glob("*.json")
    note.write_text("{torn")
    assert corpus(tmp_path).fingerprint() != first
    assert sorted(read) == ["a.jsonl", "b.jsonl", "b.jsonl"]
    note.unlink()
    (tmp_path / "text").rename(tmp_path / "moved")
    moved = FileCorpus(
        name="local",
        location=LocalFolder(str(tmp_path / "moved")),
        files=corpus(tmp_path)._files,
        record_filter=RecordFilter(text_field="text"),
    )
    assert moved.fingerprint() != first, "b.jsonl changed"
    write_jsonl(tmp_path / "moved" / "b.jsonl", [{"text": "other"}])
    moved = FileCorpus(name="local", location=moved._location, files=moved._files, record_filter=moved.record_filter)
    assert moved.fingerprint() == first, "the place does not matter, the content does"


def test_conversations_follow_content_too(tmp_path: Path) -> None:
    def print_of(word: str) -> str:
        messages = [{"role": "user", "content": "ask"}, {"role": "assistant", "content": word}]
        write_jsonl(tmp_path / "chats" / "a.jsonl", [{"messages": messages}])
        parts = [MessageFiles(LocalFolder(str(tmp_path / "chats"), tmp_path / "cache"), ("*.jsonl",))]
        return ChatMix(parts=parts, validation_fraction=0.5, max_samples=None).fingerprint()

    assert print_of("yes") == print_of("yes") != print_of("no.")


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    write(tmp_path, "old")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(UserError) as info:
        corpus(tmp_path).fingerprint()
    assert f"data.cache_dir={tmp_path / 'cache'}: cannot be written" in one_line(info.value)
