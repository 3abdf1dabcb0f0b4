"""Which records of a corpus become documents; every other one is counted under the reason it was left out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sm_diffusion.data.corpora.detokenize import DETOKENIZERS
from sm_diffusion.data.corpora.records import Record
from sm_diffusion.types import UserError

# Reasons that mean something is wrong with the file; the others are filters doing what they were asked to.
FAULTS = frozenset(
    {
        "not_utf8",
        "not_json",
        "not_an_object",
        "no_text_field",
        "text_is_no_string",
        "half_surrogate",
        "record_too_large",
        "no_language_field",
        "no_license_field",
    }
)
_NOT_WORDS = re.compile(r"[\W_]+")


class Cleaned(NamedTuple):
    """A document's text, or the reason it is refused for."""

    text: str
    refused: str | None = None


@dataclass(frozen=True, kw_only=True)
class RecordFilter:
    """text_field:       field or column that holds the text.
    detokenizer:         a key of `DETOKENIZERS`.
    min_characters, max_characters: of the text.
    languages, language_fields: kept values (empty: any) of the first of the fields that the record has; case ignored.
    licenses, license_fields:   likewise; a record with several licences needs all of them in the list.
    max_line_characters, max_mean_line_characters: longest and mean line, None: any (the-stack: 1,000 and 100).
    min_alphanumeric:    smallest share of letters and digits (the-stack: 0.25).
    """

    text_field: str
    detokenizer: str = "none"
    min_characters: int = 1
    max_characters: int = 10_000_000
    languages: tuple[str, ...] = ()
    language_fields: tuple[str, ...] = ("lang", "language")
    licenses: tuple[str, ...] = ()
    license_fields: tuple[str, ...] = ("max_stars_repo_licenses", "licenses", "license")
    max_line_characters: int | None = None
    max_mean_line_characters: float | None = None
    min_alphanumeric: float = 0.0

    def __post_init__(self) -> None:
        if self.detokenizer not in DETOKENIZERS:
            raise UserError(f"data.detokenizer={self.detokenizer}: choose one of {', '.join(DETOKENIZERS)}")
        if not 0 < self.min_characters <= self.max_characters:
            raise UserError(
                f"data.min_characters={self.min_characters}, data.max_characters={self.max_characters}: "
                f"must satisfy 0 < min <= max"
            )

    @property
    def fields(self) -> list[str]:
        """The fields to read of each record."""
        languages = self.language_fields if self.languages else ()
        return [self.text_field, *languages, *(self.license_fields if self.licenses else ())]

    def clean(self, record: Record) -> Cleaned:
        """The record's document, or why it is none."""
        if record.problem is not None:
            return Cleaned("", record.problem)
        if self.text_field not in record.fields:
            return Cleaned("", "no_text_field")
        text = record.fields[self.text_field]
        if not isinstance(text, str):
            return Cleaned("", "empty" if text is None else "text_is_no_string")
        if not text.strip():
            return Cleaned("", "empty")
        refused = self._refused_label(record.fields) or self._refused_text(text)
        if refused is not None:
            return Cleaned("", refused)
        text = DETOKENIZERS[self.detokenizer](text)
        try:
            text.encode()
        except UnicodeEncodeError:
            return Cleaned("", "half_surrogate")
        return Cleaned(text)

    def _refused_label(self, fields: dict[str, Any]) -> str | None:
        if self.languages:
            values = _first(fields, self.language_fields)
            if values is None:
                return "no_language_field"
            if not _all_in(values, self.languages):
                return "language"
        if self.licenses:
            values = _first(fields, self.license_fields)
            if values is None:
                return "no_license_field"
            if not _all_in(values, self.licenses):
                return "license"
        return None

    def _refused_text(self, text: str) -> str | None:
        if len(text) < self.min_characters:
            return "too_short"
        if len(text) > self.max_characters:
            return "too_long"
        if self.max_line_characters is not None or self.max_mean_line_characters is not None:
            lengths = [len(line) for line in text.splitlines()] or [0]
            if self.max_line_characters is not None and max(lengths) > self.max_line_characters:
                return "long_line"
            mean = sum(lengths) / len(lengths)
            if self.max_mean_line_characters is not None and mean > self.max_mean_line_characters:
                return "long_mean_line"
        if self.min_alphanumeric and sum(map(str.isalnum, text)) < self.min_alphanumeric * len(text):
            return "few_letters"
        return None


def _first(fields: dict[str, Any], names: Sequence[str]) -> list[str] | None:
    """The value of the first field there is, as a list; None if there is none."""
    for name in names:
        if fields.get(name) is not None:
            value = fields[name]
            return [str(item) for item in value] if isinstance(value, list) else [str(value)]
    return None


def _all_in(values: Sequence[str], allowed: Sequence[str]) -> bool:
    return bool(values) and {value.lower() for value in values} <= {value.lower() for value in allowed}


def same_text(text: str) -> bytes:
    """Equal for near duplicates: texts that differ in case, white space, punctuation or symbols only. 8 bytes."""
    return hashlib.blake2b(_NOT_WORDS.sub("", text.lower()).encode(), digest_size=8).digest()
