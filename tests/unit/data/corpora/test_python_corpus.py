"""The corpora made of the standard library."""

from __future__ import annotations

import pytest

from sm_diffusion.data.corpora.python_corpus import PythonCorpus, prose, prose_of_module, standard_library
from sm_diffusion.types import UserError
from tests.helpers.data import one_line


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
