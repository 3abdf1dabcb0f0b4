"""Undoes the tokenisation of the classic corpora, with the rules that MDLM's zero-shot perplexities were read under.

Rules: kuleshov-group/mdlm, dataloader.py (Apache-2.0). Order matters; a rule is (literal or pattern, replacement).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

Rule = tuple[str | re.Pattern[str], str]

_WIKITEXT: list[Rule] = [
    ("s '", "s'"),
    (re.compile(r"/' [0-9]/"), r"/'[0-9]/"),
    *((f" @{mark}@ ", mark) for mark in "-,."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
    (re.compile(r"\(\s*([^\)]*?)\s*\)"), r"(\1)"),
    (re.compile(r"\[\s*([^\]]*?)\s*\]"), r"[\1]"),
    (re.compile(r"{\s*([^}]*?)\s*}"), r"{\1}"),
    (re.compile(r"\"\s*([^\"]*?)\s*\""), r'"\1"'),
    (re.compile(r"'\s*([^']*?)\s*'"), r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \u00b0 ", "\u00b0"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
]
_PTB: list[Rule] = [
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    ("\\/", "/"),
    *[(" N ", " 1 ")] * 10,
    ("$ 1", "$1"),
    ("# 1", "#1"),
    ("<unk>", "?"),
]
_LM1B: list[Rule] = [
    ("http : / / ", "http://"),
    ("https : / / ", "https://"),
    (re.compile(r" \'(\w+)"), r"'\1"),
    (re.compile(r" (\w+) \. "), r" \1. "),
    (re.compile(r" (\w+) \.$"), r" \1."),
    (" ? ", "? "),
    (re.compile(r" \?$"), "?"),
    (" ! ", "! "),
    (re.compile(r" \!$"), "!"),
    *((f" {mark} ", f"{mark} ") for mark in ",:;"),
    (" / ", "/"),
    (re.compile(r"\" ([^\"]+) \""), r'"\1"'),
    (re.compile(r"\' ([^\']+) \'"), r"'\1'"),
    (re.compile(r"\( ([^\(\)]+) \)"), r"(\1)"),
    (re.compile(r"\[ ([^\[\]]+) \]"), r"[\1]"),
    ("$ ", "$"),
    ("\u00a3 ", "\u00a3"),
]


def _apply(text: str, rules: Sequence[Rule]) -> str:
    for pattern, replacement in rules:
        if isinstance(pattern, str):
            text = text.replace(pattern, replacement)
        else:
            text = pattern.sub(replacement, text)
    return text


def _lambada(text: str) -> str:
    return "\n" + text.replace("\u201c", '"').replace("\u201d", '"').strip()


DETOKENIZERS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "wikitext": lambda text: _apply(text, _WIKITEXT),
    "ptb": lambda text: _apply(text, _PTB),
    "lm1b": lambda text: _apply(text, _LM1B),
    "scientific": lambda text: _apply(text, [*_WIKITEXT, *_LM1B]),
    "lambada": _lambada,
}
