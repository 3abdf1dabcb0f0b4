from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sm_diffusion.data.corpora.base import TextFiles, in_validation
from sm_diffusion.data.corpora.python_corpus import PythonCorpus, prose, prose_of_module, standard_library
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


def test_python_code(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = list(standard_library())
    monkeypatch.setattr("sm_diffusion.data.corpora.python_corpus.standard_library", lambda: iter(modules))
    corpus = PythonCorpus(kind="code", validation_fraction=0.1)
    train, validation = list(corpus.train()), list(corpus.validation())
    names = [document.name for document in train + validation]
    assert "argparse.py" in names
    assert not [name for name in names if {"test", "tests", "idle_test", "site-packages"} & set(name.split("/"))]
    assert not [name for name in names if "_sysconfigdata" in name]
    assert not {d.text for d in train} & {d.text for d in validation}
    assert len(names) == len(set(names))
    total = sum(len(d.text.encode()) for d in train + validation)
    assert total > 4e6
    assert 0.03 * total < sum(len(d.text.encode()) for d in validation) < 0.2 * total
    again = PythonCorpus(kind="code", validation_fraction=0.1)
    assert again.fingerprint() == corpus.fingerprint()
    assert list(again.train()) == train
    assert PythonCorpus(kind="code", validation_fraction=0.2).fingerprint() != corpus.fingerprint()
    assert PythonCorpus(kind="text", validation_fraction=0.1).fingerprint() != corpus.fingerprint()


def test_python_text(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = [(name, source) for name, source in standard_library() if name < "b"]  # a part is enough, and quick
    monkeypatch.setattr("sm_diffusion.data.corpora.python_corpus.standard_library", lambda: iter(modules))
    corpus = PythonCorpus(kind="text", validation_fraction=0.2)
    documents = [*corpus.train(), *corpus.validation()]
    text = "\n".join(document.text for document in documents)
    assert [d for d in documents if d.name == "argparse.py"]
    assert ">>>" not in text
    assert "import " in text
    letters = sum(character.isalpha() or character.isspace() for character in text)
    assert letters / len(text) > 0.9
    assert sum(len(line.split()) for line in text.splitlines()) / len(text) > 0.1
    again = PythonCorpus(kind="text", validation_fraction=0.2)
    assert [*again.train(), *again.validation()] == documents


def test_prose_of_module_takes_docstrings_and_comment_blocks_once() -> None:
    sentence = "This sentence has more than eight words in number {}."
    comment = "# A comment of two lines reads\n    # as one sentence of English here."
    source = f'''"""{sentence.format("one")}"""
class A:
    """{sentence.format("two")}"""
    {comment}
    def f(self):
        try:
            def g():
                """{sentence.format("three")}"""
        except ValueError:
            x = 1  # not this comment, it is too short
        # nor this comment, which is of a single line
        return """no docstring, whatever it says, however long it is"""
'''
    seen: set[str] = set()
    expected = [sentence.format(number) for number in ("one", "two", "three")]
    expected.append("A comment of two lines reads\nas one sentence of English here.")
    assert prose_of_module(source, seen).split("\n\n") == expected
    assert prose_of_module(source, seen) == ""
    assert prose_of_module("no python (", seen) == ""


def test_prose() -> None:
    docstring = """Return the sum of all the numbers in a sequence of numbers.

        Example of how it is used:
        >>> add([1, 2])
        3

        +-----+-----+
        | a=1 | b=2 |
        =============

        The result is
          a number."""
    assert prose(docstring) == (
        "Return the sum of all the numbers in a sequence of numbers.\n\nExample of how it is used:\n\n"
        "The result is\na number."
    )
    assert prose("Do it.") == ""
    assert "\ud800" not in prose("This is a sentence of more than eight words, \ud800 with half a pair.")


def test_python_corpus_bad_settings() -> None:
    with pytest.raises(UserError) as info:
        PythonCorpus(kind="both", validation_fraction=0.1)
    assert one_line(info.value) == "data.kind=both: choose one of code, text"
    with pytest.raises(UserError, match=r"data.validation_fraction=0"):
        PythonCorpus(kind="code", validation_fraction=0)
