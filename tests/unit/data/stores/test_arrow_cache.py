from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from datasets.arrow_writer import ArrowWriter

from sm_diffusion.data.corpora.base import Document, TextFiles
from sm_diffusion.data.stores import arrow_cache as prepare
from sm_diffusion.data.stores.arrow_cache import prepare_tokens
from sm_diffusion.data.stores.cache import Progress, build_once
from sm_diffusion.data.tokenizers.base import ByteTokenizer, CharTokenizer
from sm_diffusion.types import UserError
from tests.helpers.data import MemorySource, everything, folder_of, one_line, prepared, tiny_source


def test_content_and_counts(tmp_path: Path) -> None:
    source = tiny_source()
    cache = prepared(tmp_path)
    for table, documents, counts in (
        (cache.train, source.train(), cache.meta.splits["train"]),
        (cache.validation, source.validation(), cache.meta.splits["validation"]),
    ):
        texts = [document.text for document in documents]
        stream = [token for text in texts for token in (*text.encode(), 256)]
        expected = [stream[start : start + 8] for start in range(0, len(stream) - 7, 8)]
        assert table.rows(range(len(table))).tolist() == expected
        assert table.rows([3, 0, 3]).tolist() == [expected[3], expected[0], expected[3]]
        assert table.rows([0]).dtype == np.int64
        assert counts.sequences == len(table) == len(expected)
        assert counts.tokens == len(stream)
        assert counts.documents == len(texts)
        assert counts.text_bytes == sum(len(text.encode()) for text in texts)
    assert (cache.meta.vocab_size, cache.meta.mask_id, cache.meta.eos_id, cache.meta.length) == (258, 257, 256, 8)
    again = pickle.loads(pickle.dumps(cache.train))
    assert again.rows([1]).tolist() == cache.train.rows([1]).tolist()


def test_many_chunks_and_empty_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sm_diffusion.data.stores.packing.wrap_documents.__kwdefaults__", {"chunk_tokens": 20})
    monkeypatch.setattr(prepare, "BATCH_DOCUMENTS", 3)
    source = MemorySource(["", *(f"Zeile {index} ß" for index in range(30)), "42!"], ["valid text, twice", " "])
    cache = prepare_tokens(source=source, tokenizer=CharTokenizer(), length=8, cache_dir=tmp_path)
    text = " ".join(["zeile"] * 30) + " "
    assert CharTokenizer().decode(cache.train.rows(range(len(cache.train))).reshape(-1)) == text[: len(text) // 8 * 8]
    counts = cache.meta.splits["train"]
    assert (counts.documents, counts.empty_documents, counts.text_bytes, counts.tokens) == (30, 2, 150, 180)
    assert len(cache.train._chunks) > 3


def test_key_follows_content_and_settings(tmp_path: Path) -> None:
    keys = [prepared(tmp_path).meta.key]
    keys.append(prepared(tmp_path, length=4).meta.key)
    keys.append(prepared(tmp_path, source=MemorySource(["other text"] * 3, ["some text"])).meta.key)
    cache = prepare_tokens(source=tiny_source(), tokenizer=CharTokenizer(), length=8, cache_dir=tmp_path)
    assert len({*keys, cache.meta.key}) == 4
    assert prepared(tmp_path).meta.key == keys[0]


def test_second_time_reads_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = everything(prepared(tmp_path))

    def refuse(*_: object) -> Iterator[Document]:
        raise AssertionError("text read again")

    monkeypatch.setattr(MemorySource, "train", refuse)
    assert everything(prepared(tmp_path)) == first


def damage_truncate(folder: Path) -> None:
    path = folder / "train.arrow"
    path.write_bytes(path.read_bytes()[:-40])


def damage_garble(folder: Path) -> None:
    path = folder / "validation.arrow"
    path.write_bytes(bytes(path.stat().st_size))


def damage_rows(folder: Path) -> None:
    fields = json.loads((folder / "meta.json").read_text())
    fields["splits"]["train"]["sequences"] += 1
    (folder / "meta.json").write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (damage_truncate, "train.arrow has .* bytes instead of"),
        (damage_garble, "validation.arrow"),
        (damage_rows, "train.arrow holds"),
        (lambda folder: (folder / "train.arrow").unlink(), "train.arrow is missing"),
        (lambda folder: (folder / "meta.json").unlink(), "meta.json"),
        (lambda folder: (folder / "meta.json").write_text("{"), "meta.json"),
        (lambda folder: (folder / "meta.json").write_text('{"splits": {}}'), "meta.json"),
    ],
)
def test_damaged_cache_is_rebuilt(tmp_path: Path, damage: Callable[[Path], object], reason: str) -> None:
    first = everything(prepared(tmp_path))
    folder = folder_of(tmp_path)
    damage(folder)
    with pytest.warns(UserWarning, match=f"damaged cache .*{reason}"):
        again = prepared(tmp_path)
    assert everything(again) == first
    assert folder_of(tmp_path) == folder, "nothing is left beside the cache"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_disk_full_keeps_the_old_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = everything(prepared(tmp_path))
    before = sorted(tmp_path.rglob("*.arrow"))
    with monkeypatch.context() as patched:
        patched.setattr(prepare, "ArrowWriter", lambda path, features: ArrowWriter(path="/dev/full", features=features))
        with pytest.raises(UserError) as info:
            prepared(tmp_path, length=4)
    message = one_line(info.value)
    assert f"data.cache_dir={tmp_path}" in message
    assert "needs more than" in message
    assert "are free" in message
    assert sorted(tmp_path.rglob("*.arrow")) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")], "the half-built cache is gone"
    assert everything(prepared(tmp_path)) == first
    assert len(prepared(tmp_path, length=4).train) > 0, "works once there is room"


def test_failed_rebuild_keeps_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "thing"
    build_once(folder, build=lambda new: (new / "a").write_text("old") and None, check=lambda _: None)

    def fail(new: Path) -> None:
        raise RuntimeError("no")

    with pytest.warns(UserWarning, match="damaged"), pytest.raises(RuntimeError):
        build_once(folder, build=fail, check=lambda _: "stale")
    assert (folder / "a").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thing", "thing.lock"]


def test_cache_dir_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("x")
    for cache_dir in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError) as info:
            prepared(cache_dir)
        assert f"data.cache_dir={cache_dir}: cannot be written" in one_line(info.value)

    def denied(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sm_diffusion.data.stores.cache.tempfile.mkdtemp", denied)
    with pytest.raises(UserError, match=r"cannot be written \(Permission denied\): set data.cache_dir"):
        prepared(tmp_path)


@pytest.mark.parametrize(
    ("train", "validation", "length", "words"),
    [
        (["abcd"] * 3, ["x" * 40], 16, ["data.length=16", "train documents", "hold 15 tokens", "at most 15"]),
        (["a" * 40], ["abc", "d"], 8, ["data.length=8", "validation documents", "hold 6 tokens", "at most 6"]),
        ([], [], 8, ["corpus is empty"]),
        (["", " \n"], [""], 8, ["corpus is empty", "3 documents without text"]),
        (["a" * 40] * 3, [], 8, ["data.validation_fraction", "no validation document out of 3", "raise it"]),
        ([], ["a" * 40], 8, ["data.validation_fraction", "no train document out of 1", "lower it"]),
        (["a"], ["a"], 0, ["data.length=0", "at least 1"]),
    ],
)
def test_text_that_cannot_be_used(
    tmp_path: Path, train: list[str], validation: list[str], length: int, words: list[str]
) -> None:
    with pytest.raises(UserError) as info:
        prepared(tmp_path, source=MemorySource(train, validation), length=length)
    assert all(word in one_line(info.value) for word in words), str(info.value)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_bad_text_leaves_no_cache(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_bytes(b"fine " * 100 + b"\xff")
    source = TextFiles(
        paths=str(tmp_path / "text"), text_field="text", split_blank_lines=False, validation_fraction=0.1
    )
    with pytest.raises(UserError, match="byte offset 500"):
        prepare_tokens(source=source, tokenizer=ByteTokenizer(), length=8, cache_dir=tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_progress_is_silent_when_short_and_regular_when_long(capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    progress = Progress(interval=5, clock=lambda: now)
    for now in (1.0, 4.9, 5.0, 6.0, 9.9, 10.5):
        progress.tell(f"at {now}")
    assert capsys.readouterr().err == "at 5.0 (5 s)\nat 10.5 (10 s)\n"
