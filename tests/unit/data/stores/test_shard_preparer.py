"""Shards of `smd prepare`: content, damage, bad records. Small stand-ins in the formats of the hub."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sm_diffusion.cli.main import main
from sm_diffusion.data.corpora import records
from sm_diffusion.data.corpora.file_corpus import FileCorpus
from sm_diffusion.data.stores import shard_preparer as sharded
from sm_diffusion.data.stores.shard_format import open_prepared, read_manifest
from sm_diffusion.data.tokenizers.base import ByteTokenizer, CharTokenizer
from sm_diffusion.types import UserError
from tests.helpers.data import (
    contents,
    document,
    file_corpus,
    folder_below,
    one_line,
    prepare_command,
    shard_preparer,
    write_jsonl,
    write_openwebtext,
    write_parquet,
)


def windows(texts: list[str]) -> list[list[int]]:
    stream = [token for text in texts for token in (*text.encode(), 256)]
    return [stream[start : start + 16] for start in range(0, len(stream) - 15, 16)]


def train_texts(corpus: FileCorpus) -> list[str]:
    return [found.text for found in corpus.train()]


def refusals(corpus: FileCorpus, folder: Path) -> dict[str, int]:
    preparer = shard_preparer(corpus, folder)
    preparer.prepare(workers=1)
    manifest = read_manifest(preparer.folder)
    assert manifest is not None
    result: dict[str, int] = {}
    for counts in manifest.totals.values():
        for reason, number in counts["refused"].items():
            result[reason] = result.get(reason, 0) + number
    return result


def test_parquet_like_the_hubs_the_last_documents_are_validation(tmp_path: Path) -> None:
    corpus = file_corpus(write_openwebtext(tmp_path / "owt"), validation_documents=13)
    assert train_texts(corpus) == [document(number) for number in range(47)]
    assert [found.text for found in corpus.validation()] == [document(number) for number in range(47, 60)]
    preparer = shard_preparer(corpus, tmp_path / "cache")
    cache = preparer.prepare(workers=1)
    expected = []
    for part in corpus.slices["train"]:
        expected += windows([found.text for found in corpus.documents("train", part)])
    assert cache.train.rows(range(len(cache.train))).tolist() == expected
    manifest = read_manifest(preparer.folder)
    assert manifest is not None
    assert [shard.split for shard in manifest.shards] == ["train"] * 5 + ["validation"] * 2
    assert manifest.totals["train"]["documents"] == 47
    assert manifest.totals["train"]["tokens"] == sum(len(document(number)) + 1 for number in range(47))
    assert manifest.totals["train"]["text_bytes"] == sum(len(document(number)) for number in range(47))
    assert cache.meta.splits["validation"].documents == 13


def test_processes_and_formats_do_not_matter(tmp_path: Path) -> None:
    corpus = file_corpus(write_openwebtext(tmp_path / "owt"))
    one, two = (shard_preparer(corpus, tmp_path / name) for name in "ab")
    one.prepare(workers=1)
    two.prepare(workers=2)
    assert contents(one.folder) == contents(two.folder)
    everything = [{"text": document(number)} for number in range(60)]
    for name in ("a/x.jsonl", "b/x.jsonl.gz"):
        write_jsonl(tmp_path / name, everything)
        other = file_corpus(tmp_path / name[0], validation_documents=13)
        assert train_texts(other) == [document(number) for number in range(47)], name
        assert [found.text for found in other.validation()] == [document(number) for number in range(47, 60)]


def test_the_command_verifies_and_repairs_one_shard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_openwebtext(tmp_path / "owt")
    assert main(prepare_command(tmp_path, "--dry-run")) == 0
    said = capsys.readouterr().out
    assert "about" in said
    assert "tokens in 6 shards, 6 of them to write" in said
    assert not list((tmp_path / "cache").rglob("*.bin"))
    assert main(prepare_command(tmp_path, "--verify")) == 2
    assert "not complete" in capsys.readouterr().err
    assert main(prepare_command(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "openwebtext: 6 shards in" in said
    assert "50 documents" in said
    assert "refused: none" in said
    folder = folder_below(tmp_path / "cache")
    before, times = contents(folder), {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert main(prepare_command(tmp_path, "--verify")) == 0
    assert "every shard has its checksum" in capsys.readouterr().out
    raw = bytearray((folder / "train-00002.bin").read_bytes())
    raw[5] ^= 1
    (folder / "train-00002.bin").write_bytes(raw)
    assert main(prepare_command(tmp_path, "--verify")) == 0
    told = capsys.readouterr()
    named = [line for line in told.err.splitlines() if "building it again" in line]
    assert named == [f"{folder}/train-00002.bin does not have the checksum of the manifest: building it again"]
    assert contents(folder) == before
    rebuilt = {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != times.get(path.name)}
    assert rebuilt == {"train-00002.bin", "train-00002.json"}


def test_a_missing_shard_is_named_and_only_it_is_built(tmp_path: Path) -> None:
    corpus = file_corpus(write_openwebtext(tmp_path / "owt"))
    preparer = shard_preparer(corpus, tmp_path / "cache")
    preparer.prepare(workers=1)
    before = contents(preparer.folder)
    times = {path.name: path.stat().st_mtime_ns for path in preparer.folder.iterdir()}
    (preparer.folder / "train-00001.bin").unlink()
    with pytest.warns(UserWarning, match=r"train-00001\.bin: damaged or missing, building it again"):
        preparer.prepare(workers=1)
    assert contents(preparer.folder) == before
    changed = {path.name for path in preparer.folder.iterdir() if path.stat().st_mtime_ns != times[path.name]}
    assert changed == {"train-00001.bin", "train-00001.json"}


def test_a_source_that_changed_behind_the_manifest_is_refused(tmp_path: Path) -> None:
    corpus = file_corpus(write_openwebtext(tmp_path / "owt"))
    preparer = shard_preparer(corpus, tmp_path / "cache")
    preparer.prepare(workers=1)
    path = tmp_path / "owt" / "plain_text" / "train-00000-of-00003.parquet"
    write_parquet(path, [{"text": "other " + document(number)} for number in range(20)])
    (preparer.folder / "train-00000.bin").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(UserError, match=r"train-00000\.bin: built again it is another shard: the source changed"):
            preparer.verify(workers=1)


def test_bad_records_are_counted_and_the_rest_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MAX_RECORD_BYTES", 2000)
    good = [{"text": document(number)} for number in range(40)]
    bad: list[object] = [
        b'{"text": "caf\xe9"}',
        {"text": ""},
        {"text": " \n"},
        {"text": None},
        {"text": "x" * 5000},
        {"content": "no text"},
        {"text": ["a", "list"]},
        b"{broken",
        [1, 2],
        b'{"text": "half \\ud800"}',
        b"",
    ]
    mixed = [record for pair in zip(good, [*bad, *good], strict=False) for record in pair]
    write_jsonl(tmp_path / "text" / "x.jsonl", mixed)
    write_parquet(tmp_path / "text" / "train-other.parquet", [{"body": "another schema"}] * 3)
    assert refusals(file_corpus(tmp_path / "text"), tmp_path / "cache") == {
        "not_utf8": 1,
        "empty": 3,
        "record_too_large": 1,
        "no_text_field": 4,
        "text_is_no_string": 1,
        "not_json": 1,
        "not_an_object": 1,
        "half_surrogate": 1,
    }
    preparer = shard_preparer(file_corpus(tmp_path / "text"), tmp_path / "strict", max_fault_share=0.01)
    with pytest.raises(UserError) as info:
        preparer.prepare(workers=1)
    message = one_line(info.value)
    assert "10 of" in message
    assert "no_text_field 4" in message
    assert "data.text_field (now text)" in message


def test_parquet_that_is_not_utf8(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = pa.array([document(1).encode(), b"caf\xe9", *(document(number).encode() for number in range(40))])
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    (tmp_path / "text").mkdir()
    pq.write_table(pa.table({"text": text}), tmp_path / "text" / "train-0.parquet")
    assert refusals(file_corpus(tmp_path / "text"), tmp_path / "cache") == {"not_utf8": 1}


def a_line_of(path: Path, megabytes: int) -> None:
    with path.open("ab") as file:
        file.write(b'{"text": "')
        for _ in range(megabytes):
            file.write(b"x" * 10**6)
        file.write(b'"}\n')


@pytest.mark.parametrize("megabytes", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_one_huge_line_is_never_held(tmp_path: Path, megabytes: int) -> None:
    import tracemalloc

    path = write_jsonl(tmp_path / "text" / "x.jsonl", [{"text": document(number)} for number in range(30)])
    a_line_of(path, megabytes)
    write_jsonl(tmp_path / "text" / "y.jsonl", [{"text": document(number)} for number in range(30, 60)])
    tracemalloc.start()
    try:
        texts = train_texts(file_corpus(tmp_path / "text", slice_bytes=10**9))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert texts == [document(number) for number in range(50)]
    assert peak < 40e6
    assert refusals(file_corpus(tmp_path / "text", slice_bytes=10**9), tmp_path / "cache") == {"record_too_large": 1}


def test_prepared_folder_alone(tmp_path: Path) -> None:
    corpus = file_corpus(write_openwebtext(tmp_path / "owt"))
    preparer = shard_preparer(corpus, tmp_path / "cache")
    cache = preparer.prepare(workers=1)
    path = str(preparer.folder)
    opened = open_prepared(path, tokenizer=ByteTokenizer(), length=16)
    assert opened.train.rows([0, 5]).tolist() == cache.train.rows([0, 5]).tolist()
    assert opened.meta == cache.meta
    for tokenizer, length, words in (
        (CharTokenizer(), 16, ["the tokenizer does not match", "vocabulary 258", "vocabulary 28"]),
        (ByteTokenizer(), 8, ["data.length=8", "sequences of 16"]),
    ):
        with pytest.raises(UserError) as info:
            open_prepared(path, tokenizer=tokenizer, length=length)
        assert all(word in one_line(info.value) for word in words)
    (preparer.folder / "validation-00000.bin").write_bytes(b"short")
    with pytest.raises(UserError, match=r"validation-00000\.bin has 5 bytes instead of .*--verify"):
        open_prepared(path, tokenizer=ByteTokenizer(), length=16)
    (preparer.folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"no manifest\.json"):
        open_prepared(path, tokenizer=ByteTokenizer(), length=16)


def test_free_disk_is_checked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = file_corpus(write_openwebtext(tmp_path / "owt"))
    preparer = shard_preparer(corpus, tmp_path / "cache")
    monkeypatch.setattr(sharded.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(UserError, match=r"GB of shards are to be written and 0.00 GB are free"):
        preparer.prepare(workers=1)
    assert not list(preparer.folder.glob("*.bin"))


def test_the_estimate_is_about_right(tmp_path: Path) -> None:
    corpus = file_corpus(write_openwebtext(tmp_path / "owt"))
    preparer = shard_preparer(corpus, tmp_path / "cache")
    estimate = preparer.estimate()
    preparer.prepare(workers=1)
    manifest = read_manifest(preparer.folder)
    assert manifest is not None
    tokens = sum(counts["tokens"] for counts in manifest.totals.values())
    assert estimate.tokens == pytest.approx(tokens, rel=0.2)
    assert estimate.shards == estimate.shards_left == 6
    after = preparer.estimate()
    assert (after.shards_left, after.disk_bytes) == (0, 0)


def test_manifest_says_where_it_came_from(tmp_path: Path) -> None:
    corpus = file_corpus(write_openwebtext(tmp_path / "owt"))
    preparer = shard_preparer(corpus, tmp_path / "cache")
    preparer.prepare(workers=1)
    manifest = json.loads((preparer.folder / "manifest.json").read_text())
    assert manifest["tokenizer"] == ByteTokenizer().fingerprint()
    assert manifest["settings"]["division"]["validation_documents"] == 10
    assert len(manifest["settings"]["files"]) == 3
    assert all(len(shard["sha256"]) == 64 for shard in manifest["shards"])
