"""The embedded default corpus: the running interpreter's standard library, as code or as the English in it."""

from __future__ import annotations

import ast
import inspect
import itertools
import json
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from sm_diffusion.data.corpora.base import Document, TokenSource, check_fraction, in_validation
from sm_diffusion.files import digest
from sm_diffusion.types import UserError

# Raise it whenever the same library would give other documents, so that old caches are not taken for new ones.
FORMAT_VERSION = 1
KINDS = ("code", "text")
# Tests, what pip installed, tables of character codes (near duplicates), and what depends on how Python was built.
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "encodings", "pydoc_data"}
SKIPPED_PREFIXES = ("config-", "_sysconfigdata")
MIN_WORDS = 8
MIN_LETTER_SHARE = 0.7
_SPACES = re.compile(r"\s+")
_SYMBOLS = re.compile(r"[^\w,.'`*\"-]|[\d_]")  # what neither prose nor its markup is made of
_WORD = re.compile(r"[A-Za-z]{2,}")


class PythonCorpus(TokenSource):
    """Real text that is on every machine: about 10 MB of Python code, or about 2.7 MB of English.

    kind: 'code': every .py file of the standard library, tests excluded, a document each.
          'text': the docstrings and longer comments of those files, a document a module, and the language's help
                  topics, a document each.
    validation_fraction: in (0, 1), share of the documents, chosen by a stable hash of their content.

    Licence of the text: PSF. Errors: UserError for an unknown kind or a fraction outside (0, 1).
    """

    def __init__(self, *, kind: str, validation_fraction: float) -> None:
        if kind not in KINDS:
            raise UserError(f"data.kind={kind}: choose one of {', '.join(KINDS)}")
        check_fraction(validation_fraction)
        self._kind = kind
        self._fraction = validation_fraction

    def train(self) -> Iterator[Document]:
        return (document for document in self._documents if not in_validation(document.text, self._fraction))

    def validation(self) -> Iterator[Document]:
        return (document for document in self._documents if in_validation(document.text, self._fraction))

    def fingerprint(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        settings = ["python_corpus", FORMAT_VERSION, self._kind, self._fraction]
        parts = list(self._modules)
        if self._kind == "text":
            parts += [(topic.name, topic.text) for topic in help_topics()]
        return digest(json.dumps(settings), *(f"|{name}|{len(text)}|{text}" for name, text in parts))

    @cached_property
    def _modules(self) -> list[tuple[str, str]]:
        return list(standard_library())

    @cached_property
    def _documents(self) -> list[Document]:
        modules = [Document(source, name) for name, source in self._modules]
        if self._kind == "code":
            candidates = modules
        else:
            seen: set[str] = set()
            candidates = [Document(prose_of_module(module.text, seen), module.name) for module in modules]
            candidates += [Document(prose(topic.text), topic.name) for topic in help_topics()]
        texts: set[str] = set()
        documents = []
        for document in candidates:
            if document.text.strip() and document.text not in texts:
                texts.add(document.text)
                documents.append(document)
        return documents


def standard_library() -> Iterator[tuple[str, str]]:
    """(path inside the library, source) of each module, sorted by path. Files Python itself cannot decode are left."""
    root = Path(sysconfig.get_path("stdlib"))
    found = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    for name, path in sorted(found.items()):
        parts = name.split("/")
        if SKIPPED_FOLDERS.intersection(parts) or any(part.startswith(SKIPPED_PREFIXES) for part in parts):
            continue
        try:
            with tokenize.open(path) as file:
                yield name, file.read()
        except (SyntaxError, UnicodeDecodeError):
            continue


def help_topics() -> list[Document]:
    """The language reference as `help()` shows it; empty where the interpreter was packaged without it."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return []
    return [Document(text, f"topic {name}") for name, text in sorted(topics.items())]


def prose_of_module(source: str, seen: set[str]) -> str:
    """The English of a module: its docstrings in source order, then its comments, apart by blank lines.

    `seen` holds the pieces of earlier modules; a piece in it is left out, and new ones are added.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except SyntaxError:
        return ""
    kept = []
    docstrings = (ast.get_docstring(node, clean=True) or "" for node in _nodes_with_docstrings(tree))
    for piece in itertools.chain(docstrings, comment_blocks(source)):
        text = prose(piece)
        if text and text not in seen:
            seen.add(text)
            kept.append(text)
    return "\n\n".join(kept)


def comment_blocks(source: str) -> Iterator[str]:
    """The text of comments that run over two lines or more."""
    for is_comment, lines in itertools.groupby(map(str.strip, source.splitlines()), lambda line: line[:1] == "#"):
        block = [line.lstrip("#").removeprefix(" ") for line in lines] if is_comment else []
        if len(block) >= 2:
            yield "\n".join(block)


_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def _nodes_with_docstrings(node: ast.AST) -> Iterator[_Documented]:
    if isinstance(node, _Documented):
        yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):  # no expression holds a docstring
            yield from _nodes_with_docstrings(child)


def prose(text: str) -> str:
    """The paragraphs of a docstring that read as English.

    Doctests, code blocks, tables, rulers and signatures are dropped; so is a text of fewer than MIN_WORDS words.
    The lines of a paragraph stay as they are, without their indentation.
    """
    paragraphs = [_prose_lines(block) for block in re.split(r"\n[ \t]*\n", inspect.cleandoc(text))]
    kept = "\n\n".join(paragraph for paragraph in paragraphs if paragraph)
    kept = kept.encode(errors="ignore").decode()  # an escape in a docstring can make half a surrogate pair
    return kept if len(_WORD.findall(kept)) >= MIN_WORDS else ""


def _prose_lines(block: str) -> str:
    """One paragraph without its doctest and its lines of symbols; '' if what is left is no sentence."""
    lines = []
    for line in inspect.cleandoc(block).splitlines():
        if line.lstrip().startswith(">>>"):
            break
        if _reads_as_english(line):
            lines.append(line.rstrip())
    text = "\n".join(lines)
    return text if len(_WORD.findall(text)) >= 3 else ""


def _reads_as_english(line: str) -> bool:
    """Whether letters make up at least MIN_LETTER_SHARE of the line's visible characters; links do not."""
    visible = _SPACES.sub("", line)
    symbols = len(_SYMBOLS.findall(visible))
    return "://" not in line and bool(_WORD.search(line)) and symbols <= (1 - MIN_LETTER_SHARE) * len(visible)
