"""A fine-tuning set that is on every machine: documented functions of the standard library as requests and answers."""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections.abc import Iterator
from functools import cached_property

from sm_diffusion.data.chat.sources import ChatSource, Conversation
from sm_diffusion.data.corpora.base import check_fraction, in_validation
from sm_diffusion.data.corpora.python_corpus import standard_library
from sm_diffusion.files import digest

FORMAT_VERSION = 1


class PythonChat(ChatSource):
    """"def name(arguments)" and the first paragraph of its docstring ask; the body without the docstring answers.

    validation_fraction: in (0, 1), share of the conversations, by a stable hash of their text. Licence: PSF.
    """

    def __init__(self, *, validation_fraction: float) -> None:
        super().__init__()
        check_fraction(validation_fraction)
        self._fraction = validation_fraction

    def conversations(self, split: str) -> Iterator[Conversation]:
        wanted = split == "validation"
        return (chat for chat in self._all if in_validation(chat.text, self._fraction) == wanted)

    def fingerprint(self) -> str:
        modules = (f"|{name}|{len(source)}|{source}" for name, source in standard_library())
        return digest(f"python_chat {FORMAT_VERSION} {self._fraction}", *modules)

    @cached_property
    def _all(self) -> list[Conversation]:
        unique: dict[str, Conversation] = {}
        for name, source in standard_library():
            for chat in functions_of(source, name):
                unique.setdefault(chat.text, chat)
        return list(unique.values())


def functions_of(source: str, name: str) -> Iterator[Conversation]:
    """A conversation for every function of a module that has a docstring and something below it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
            continue
        documented = ast.get_docstring(node)
        if not documented or not documented.isascii():
            continue
        lines = source.splitlines()[node.body[1].lineno - 1 : node.end_lineno]
        body = textwrap.dedent("\n".join(lines)).rstrip()
        asked = f"def {node.name}({ast.unparse(node.args)}): {' '.join(documented.split(chr(10) * 2)[0].split())}"
        if body and body.isascii():
            messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": body}]
            yield Conversation(messages, f"{name}:{node.lineno}")
