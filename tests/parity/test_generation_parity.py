"""Generative perplexity, entropy and MAUVE's human texts as the released evaluation has them."""

from __future__ import annotations

import math

import pytest
import torch

from sm_diffusion.evaluation.generation.mauve import reference_order
from sm_diffusion.evaluation.generation.reader import judged_positions
from sm_diffusion.evaluation.generation.text_stats import unigram_entropy
from tests.helpers.golden import Golden, assert_close, golden_json

pytestmark = pytest.mark.parity
NUMBERS = golden_json("gen_ppl")
GPT2_END = 50256
CHUNK = 1024


def weights(ids_BL, end_id, real_BL=None):
    real_BL = torch.ones_like(ids_BL, dtype=torch.bool) if real_BL is None else real_BL.bool()
    return judged_positions(ids_BL, real_BL, [end_id], "all")


@pytest.mark.parametrize("source", ["duo", "mdlm"])
def test_tokens_that_count(source):
    golden, numbers = Golden("gen_ppl"), NUMBERS["ids"]
    weight_BL = weights(golden["ids.samples"], numbers["eos_id"])
    assert torch.equal(weight_BL.float(), golden[f"ids.{source}.weight"])
    nll_BL = torch.nn.functional.cross_entropy(
        golden["ids.logits"][:, :-1].transpose(1, 2), golden["ids.samples"][:, 1:], reduction="none"
    )
    assert_close(nll_BL, golden["ids.nll"], 1e-6)
    for nll_L, weight_L, row in zip(nll_BL, weight_BL, numbers["per_row"][source], strict=True):
        assert int(weight_L.sum()) == row["count"]
        assert math.exp(float(nll_L[weight_L].mean())) == pytest.approx(row["perplexity"], rel=1e-5)
    whole = numbers["batches"][f"{source}.bs8"]
    assert math.exp(float(nll_BL[weight_BL].mean())) == pytest.approx(whole["perplexity"], rel=1e-5)


@pytest.mark.parametrize("longest", [16, 1024])
def test_texts_of_several_lengths(longest):
    """Their padding is the end of text: with it the first pad of a row without any counts, and without it none does."""
    golden = Golden("gen_ppl")
    ids_BL, real_BL, expected_BL = (
        golden[f"retokenised.max{longest}.{name}"] for name in ("ids", "attention_mask", "weight")
    )
    assert torch.equal(weights(ids_BL, GPT2_END).float(), expected_BL)
    own_BL = weights(ids_BL, GPT2_END, real_BL)
    assert torch.equal(own_BL, expected_BL.bool() & real_BL[:, 1:].bool())
    for case in NUMBERS["retokenised"]["cases"]:
        if case["max_length"] == longest and case["batch_size"] == 8:
            nll_BL = golden[f"retokenised.max{longest}.nll"]
            assert int(expected_BL.sum()) == case["count"]
            assert float((nll_BL * expected_BL).sum()) == pytest.approx(case["total_nll"], rel=1e-5)


def test_pieces_of_long_texts():
    """Texts over 1,024 tokens are judged in pieces, each with its own position 0 and first end of text."""
    golden = Golden("gen_ppl")
    for number, ids_BL in enumerate(golden["split.ids"].long().split(CHUNK, dim=1)):
        weight_BL = weights(ids_BL, GPT2_END)
        assert torch.equal(weight_BL, golden[f"split.chunk{number}.weight"].bool())


def test_entropy():
    samples = Golden("gen_ppl")["ids.samples"].tolist()
    found = [unigram_entropy(ids) for ids in samples]
    assert found == pytest.approx(NUMBERS["ids"]["sample_entropy_nats"], rel=1e-5)


@pytest.mark.parametrize("case", golden_json("mauve_references")["cases"])
def test_human_texts_of_mauve(case):
    found = reference_order(case["N"], case["num_samples_needed"], case["seed"])
    assert len(found) == case["returned"]
    assert found == case["indices"]
