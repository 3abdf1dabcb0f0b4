"""How the spaces of tokenized corpora are undone."""

from __future__ import annotations

import pytest

from sm_diffusion.data.corpora.detokenize import DETOKENIZERS


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("wikitext", '1 @,@ 000 @-@ km road ( M1 ) , near " A " \'s end', '1,000-km road (M1), near "A"\'s end'),
        ("ptb", "mr. <unk> 's n't N N \\/ $ N", "mr. ?'sn't 1 1 / $ N"),
        ("lm1b", 'He said : " no " , it \'s $ 5 .', 'He said: "no", it\'s $5.'),
        ("lambada", " \u201cYes\u201d ", '\n"Yes"'),
        ("none", " as it is ", " as it is "),
    ],
)
def test_detokenizers(name: str, before: str, after: str) -> None:
    assert DETOKENIZERS[name](before) == after
