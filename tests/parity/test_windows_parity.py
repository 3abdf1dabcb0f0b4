"""Windows and detokenisers of the released loader (windows.json)."""

from __future__ import annotations

import numpy as np
import pytest

from sm_diffusion.data.corpora.detokenize import DETOKENIZERS
from sm_diffusion.data.stores.packing import contiguous_parts, pad_with_ends, wrap_with_ends
from tests.helpers.golden import golden_json

pytestmark = pytest.mark.parity
GOLDEN = golden_json("windows")
META = GOLDEN["meta"]
ENDS = (META["bos_id"], META["eos_id"])
# GPT-2's ids of the words that many_documents is made of: at the start of a document, and after a space.
FIRST = {
    "house": 4803, "green": 14809, "dog": 9703, "blue": 17585, "two": 11545, "sun": 19155, "tree": 21048, "red": 445,
    "one": 505, "moon": 22977, "cat": 9246, "three": 15542,
}  # fmt: skip
AFTER_SPACE = {
    "dog": 3290, "tree": 5509, "sun": 4252, "green": 4077, "red": 2266, "house": 2156, "blue": 4171, "three": 1115,
    "one": 530, "two": 734, "cat": 3797, "moon": 8824,
}  # fmt: skip
NAMES = {"wt": "wikitext"}


def windows(documents, *, length, insert_eos=True):
    eos = META["eos_id"] if insert_eos else None
    parts = wrap_with_ends(documents, length=length, ends=ENDS, eos_id=eos, dtype=np.uint16)
    return [row for part in parts for row in part.tolist()]


@pytest.mark.parametrize("case", [case for case in GOLDEN["cases"] if case["wrap"]])
def test_wrapped(case):
    found = windows(GOLDEN["doc_ids"], length=case["block_size"], insert_eos=case["insert_eos"])
    assert found == case["windows"]


@pytest.mark.parametrize("case", [case for case in GOLDEN["cases"] if not case["wrap"]])
def test_unwrapped(case):
    length = case["block_size"]
    found = [pad_with_ends(ids, length=length, ends=ENDS, pad_id=META["pad_id"]) for ids in GOLDEN["doc_ids"]]
    assert [ids.tolist() for ids, _ in found] == case["windows"]
    assert [real.astype(int).tolist() for _, real in found] == case["attention_masks"]


@pytest.mark.parametrize("run", GOLDEN["many_documents"]["runs"], ids=lambda run: f"num_proc{run['num_proc']}")
def test_batches_and_parts_of_many_documents(run):
    texts = GOLDEN["many_documents"]["docs"]
    documents = []
    for text in texts:
        first, *others = text.split(" ")
        documents.append([FIRST[first], *(AFTER_SPACE[word] for word in others)])
    found = []
    for part in contiguous_parts(len(documents), run["num_proc"]):
        found += windows(documents[part.start : part.stop], length=GOLDEN["many_documents"]["block_size"])
    assert len(found) == run["num_windows"]
    assert found[: len(run["windows_first"])] == run["windows_first"]
    assert found[-1] == run["window_last"]
    sums = [sum((place + 1) * token for place, token in enumerate(row)) % 1000003 for row in found]
    assert sums == run["all_ids_crc_rows"]


def test_less_than_one_window_gives_none():
    assert GOLDEN["too_short"]["windows"] == windows([[16438, 530, 13]], length=GOLDEN["too_short"]["block_size"]) == []
    with pytest.raises(ValueError, match="length=2"):
        windows([[1]], length=2)


@pytest.mark.parametrize("case", GOLDEN["detokenizers"], ids=lambda case: case["detokenizer"])
def test_detokenizers(case):
    name = NAMES.get(case["detokenizer"], case["detokenizer"])
    assert DETOKENIZERS[name](case["input"]) == case["output"]


def test_lines_of_wikitext():
    """Every line is a document, empty ones too; the expected windows spell its detokenised text."""
    golden = GOLDEN["wikitext2"]
    inner = [token for row in golden["windows"] for token in row[1:-1]]
    documents = [[]]
    for token in inner:
        if token == META["eos_id"]:
            documents.append([])
        else:
            documents[-1].append(token)
    assert windows(documents, length=golden["block_size"]) == golden["windows"]
    assert len(documents) <= len(golden["rows"]) + 1
