from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sm_diffusion.data.corpora.base import TextFiles, in_validation
from sm_diffusion.data.corpora.python_corpus import PythonCorpus
from sm_diffusion.types import UserError
from tests.helpers.data import one_line


def text_files(paths: object, **changes: object) -> TextFiles:
    settings = {"text_field": "text", "split_blank_lines": False, "validation_fraction": 0.3, **changes}
    return TextFiles(paths=paths, **settings)  # type: ignore[arg-type]


def all_texts(source: TextFiles | PythonCorpus) -> list[str]:
    return sorted(document.text for part in (source.train(), source.validation()) for document in part)


def test_every_format(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo\n", encoding="utf-8-sig")
    (tmp_path / "b.py").write_text("x = 'ß'\n")
    (tmp_path / "c.jsonl").write_text('{"text": "three"}\n\n{"id": 1, "text": "f\\u00fcnf"}\n')
    (tmp_path / "sub").mkdir()
    pq.write_table(pa.table({"text": ["six", "seven"], "n": [1, 2]}), tmp_path / "sub" / "d.parquet")
    (tmp_path / "ignored.bin").write_bytes(b"\xff")
    expected = sorted(["one\n\ntwo\n", "x = 'ß'\n", "three", "fünf", "six", "seven"])
    assert all_texts(text_files(str(tmp_path))) == expected
    assert all_texts(text_files([str(tmp_path / "*.*l"), str(tmp_path / "sub")])) == ["fünf", "seven", "six", "three"]
    split = text_files(str(tmp_path / "a.txt"), split_blank_lines=True)
    assert all_texts(split) == ["one", "two"]


def test_split_depends_on_content_only(tmp_path: Path) -> None:
    texts = [f"text number {index}" for index in range(200)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[::-3]))
    whole, part = text_files(str(tmp_path / "a.jsonl")), text_files(str(tmp_path / "b.jsonl"))
    train, validation = ({d.text for d in half} for half in (whole.train(), whole.validation()))
    assert train | validation == set(texts)
    assert not train & validation
    assert 30 <= len(validation) <= 90
    assert {d.text for d in part.validation()} == validation & set(texts[::-3])
    assert validation == {text for text in texts if in_validation(text, 0.3)}
    # a larger fraction only adds documents
    assert validation <= {text for text in texts if in_validation(text, 0.4)}


def test_validation_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("train")
    (tmp_path / "v.txt").write_text("valid")
    source = text_files(str(tmp_path / "a.txt"), validation_paths=str(tmp_path / "v.txt"))
    assert [d.text for d in source.train()] == ["train"]
    assert [d.text for d in source.validation()] == ["valid"]
    with pytest.raises(UserError) as info:
        text_files(str(tmp_path), validation_paths=str(tmp_path / "v.txt"))
    assert "data.validation_paths" in one_line(info.value)
    assert "v.txt" in str(info.value)


def test_fingerprint_follows_content_and_settings(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    prints = [text_files(str(file)).fingerprint()]
    (tmp_path / "moved").mkdir()
    (tmp_path / "moved" / "b.txt").write_text("one")
    assert text_files(str(tmp_path / "moved")).fingerprint() == prints[0], "a moved folder is the same corpus"
    stamp = file.stat()
    file.write_text("two")  # same size; also give it the same time
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    prints.append(text_files(str(file)).fingerprint())
    prints.append(text_files(str(file), validation_fraction=0.4).fingerprint())
    prints.append(text_files(str(file), text_field="body").fingerprint())
    prints.append(text_files(str(file), split_blank_lines=True).fingerprint())
    assert len(set(prints)) == len(prints)


def test_bad_paths(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b")
    for paths, words in (
        (str(tmp_path / "none.txt"), ["data.paths=", "none.txt", "no such file"]),
        (str(tmp_path / "*.txt"), ["data.paths=", "*.txt"]),
        (str(tmp_path), ["data.paths=", "no file that ends in .txt, .py, .jsonl, .parquet"]),
        (str(tmp_path / "a.csv"), ["data.paths", "a.csv", ".jsonl"]),
        ([], ["data.paths is empty"]),
    ):
        with pytest.raises(UserError) as info:
            text_files(paths)
        assert all(word in one_line(info.value) for word in words), str(info.value)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UserError, match=r"data.validation_fraction=1.5"):
        text_files(str(tmp_path / "a.txt"), validation_fraction=1.5)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", b"abc\xff", ["a.txt", "byte offset 3", "0xff", "iconv"]),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xe9"}\n', ["a.jsonl", "byte offset 24"]),
        ("a.jsonl", b'{"text": "x"}\n\n{"body": "y", "id": 1}\n', ["line 3", "'text'", "body, id", "data.text_field"]),
        ("a.jsonl", b'{"text": 5}\n', ["line 1", "'text' is int"]),
        ("a.jsonl", b'{"text": "\\ud800"}\n', ["line 1", "surrogate"]),
        ("a.jsonl", b'{"text": "x"\n', ["line 1", "not JSON"]),
        ("a.jsonl", b"[1]\n", ["line 1", "list"]),
        ("a.parquet", b"PAR1 not really", ["a.parquet", "not a readable parquet file"]),
    ],
)
def test_bad_content(tmp_path: Path, name: str, content: bytes, words: list[str]) -> None:
    (tmp_path / name).write_bytes(content)
    source = text_files(str(tmp_path))
    with pytest.raises(UserError) as info:
        list(source.train())
    assert all(word in one_line(info.value) for word in words), str(info.value)


def test_bad_parquet_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError) as info:
        all_texts(text_files(str(tmp_path)))
    assert "body, n" in one_line(info.value)
    pq.write_table(pa.table({"text": ["x", None]}), tmp_path / "a.parquet")
    with pytest.raises(UserError) as info:
        all_texts(text_files(str(tmp_path)))
    assert "row 1" in one_line(info.value)
