"""Drawing a token: nucleus, top-k, inverse CDF, the Draw readout, and the random numbers behind them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sm_diffusion.diffusion.contracts import Head
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.diffusion.readouts import scratch
from sm_diffusion.diffusion.readouts.base import KeepLogits, Summarize
from sm_diffusion.diffusion.readouts.draw import Draw
from sm_diffusion.sampling import RowNoise, TokenSampling, from_prompts
from sm_diffusion.sampling.categorical import (
    DrawnProbability,
    InverseCdf,
    Margin,
    MostProbable,
    NegEntropy,
    SampleRule,
    inverse_cdf,
    nucleus_,
)
from sm_diffusion.sampling.reference.plain import plain_nucleus


def random_probs(rows: int, vocab_size: int, scale: float, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(rows, vocab_size, generator=generator)).softmax(-1)


@settings(deadline=None, max_examples=50)
@given(
    vocab_size=st.integers(2, 400),
    scale=st.sampled_from([0.1, 1.0, 5.0]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 0.999]),
    seed=st.integers(0, 1000),
)
def test_nucleus_equals_its_plain_twin(vocab_size: int, scale: float, top_p: float, seed: int) -> None:
    p_CV = random_probs(5, vocab_size, scale, seed)
    reference = plain_nucleus(p_CV.clone(), top_p)
    nucleus_(p_CV, top_p)
    differs_C = ((p_CV > 0) != (reference > 0)).any(-1)
    # float32 against float64 sums: only a token exactly at the border may fall on either side.
    mass_CV = p_CV.double().sort(-1, descending=True).values.cumsum(-1)
    assert not bool((differs_C & ((mass_CV - top_p).abs().amin(-1) > 1e-5)).any())
    same = p_CV[~differs_C] / p_CV[~differs_C].sum(-1, keepdim=True)
    torch.testing.assert_close(same, reference[~differs_C], atol=1e-6, rtol=1e-5)


def test_nucleus_of_tied_tokens_keeps_the_first_ids() -> None:
    p_CV = torch.full((1, 10), 0.1)
    nucleus_(p_CV, 0.55)
    assert p_CV.nonzero()[:, 1].tolist() == [0, 1, 2, 3, 4]
    p_CV = torch.tensor([[0.1, 0.4, 0.1, 0.1, 0.3]])
    nucleus_(p_CV, 0.85)
    assert p_CV.nonzero()[:, 1].tolist() == [0, 1, 4]


def test_nucleus_drops_the_crossing_token_or_keeps_it() -> None:
    p_CV = torch.tensor([[0.6, 0.3, 0.1]])
    for top_p, crossing, kept in [(0.7, False, 1), (0.7, True, 2), (0.5, False, 1), (0.5, True, 1), (0.95, True, 3)]:
        ours = p_CV.clone()
        nucleus_(ours, top_p, keep_crossing=crossing)
        assert int((ours > 0).sum()) == kept, (top_p, crossing)


def test_top_k_and_temperature() -> None:
    logits_CV = torch.tensor([[1.0, 3.0, 2.0, 0.0]])
    p_CV = TokenSampling(temperature=0.5, top_k=2).probabilities_(logits_CV.clone())
    torch.testing.assert_close(p_CV, torch.tensor([[-torch.inf, 6.0, 4.0, -torch.inf]]).softmax(-1))
    torch.testing.assert_close(TokenSampling().probabilities_(logits_CV.clone()), logits_CV.softmax(-1))


@settings(deadline=None, max_examples=50)
@given(vocab_size=st.integers(1, 300), scale=st.sampled_from([0.0, 1.0, 20.0]), seed=st.integers(0, 1000))
def test_inverse_cdf_inverts_the_cdf(vocab_size: int, scale: float, seed: int) -> None:
    p_CV = random_probs(64, vocab_size, scale, seed) * 7.0
    uniform_C = torch.rand(64, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    drawn_C = inverse_cdf(p_CV, uniform_C)
    cdf_CV = p_CV.double().cumsum(-1) / p_CV.double().sum(-1, keepdim=True)
    upper_C = cdf_CV.gather(1, drawn_C[:, None]).squeeze(1)
    lower_C = upper_C - (p_CV.double() / p_CV.double().sum(-1, keepdim=True)).gather(1, drawn_C[:, None]).squeeze(1)
    assert bool((p_CV.gather(1, drawn_C[:, None]) > 0).all())
    assert bool((lower_C - 1e-6 <= uniform_C).all())
    assert bool((uniform_C <= upper_C + 1e-6).all())


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_impossible_tokens_are_never_drawn(uniform: float) -> None:
    p_CV = torch.zeros(1, 200)
    p_CV[0, [70, 130]] = torch.tensor([1e-30, 0.3])
    assert int(inverse_cdf(p_CV, torch.tensor([uniform], dtype=torch.float64))) in (70, 130)


def test_draws_resolve_what_float32_noise_could_not() -> None:
    p_CV = torch.full((1, 3), 1e-12)
    p_CV[0, 1] = 1.0
    below = torch.tensor([1e-13], dtype=torch.float64)
    assert int(inverse_cdf(p_CV, below)) == 0
    assert int(inverse_cdf(p_CV, 10 * below + 1e-12)) == 1


def test_measures() -> None:
    p_CV, ids_C = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]]), torch.tensor([1, 2])
    torch.testing.assert_close(DrawnProbability()(p_CV, ids_C, ids_C), torch.tensor([0.3, 0.8]).double())
    torch.testing.assert_close(Margin()(p_CV, ids_C, ids_C), torch.tensor([0.2, 0.7]).double())
    entropy_C = -(p_CV * p_CV.log()).sum(-1).double()
    torch.testing.assert_close(NegEntropy()(p_CV, ids_C, ids_C), -entropy_C, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 1000])
def test_draw_equals_separate_readouts(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(scratch, "chunk_rows", lambda *_: chunk)
    vocab_size, hidden_BLD = 131, torch.randn(2, 9, 16)
    head = Head(torch.randn(vocab_size, 16), torch.randn(vocab_size), Subs(vocab_size - 1))
    drawn_N, kept_N = torch.tensor([0, 4, 5, 11, 17]), torch.tensor([2, 4, 9, 11, 12, 16])
    uniform_BL = torch.rand(2, 9, dtype=torch.float64)
    rule = SampleRule(TokenSampling(top_p=0.8), InverseCdf(uniform_BL), DrawnProbability(), torch.arange(18))
    summarize = Summarize(kept_N, top_k=3)
    both = Draw(drawn_N, rule, remember=summarize)(hidden_BLD, head)
    alone = Draw(drawn_N, rule, remember=None)(hidden_BLD, head)
    memory = summarize(hidden_BLD, head)
    assert torch.equal(both.ids_BL, alone.ids_BL)
    torch.testing.assert_close(both.confidence_BL, alone.confidence_BL, atol=1e-6, rtol=1e-5)
    assert both.memory is not None
    for ours, reference in zip(both.memory, memory, strict=True):
        torch.testing.assert_close(ours, reference)
    undrawn_M = torch.ones(18, dtype=torch.bool)
    undrawn_M[drawn_N] = False
    assert bool((both.confidence_BL.flatten()[undrawn_M] == -torch.inf).all())
    assert bool((both.ids_BL.flatten()[undrawn_M] == 0).all())
    dense = Draw(drawn_N, rule, remember=KeepLogits(kept_N))(hidden_BLD, head)
    assert torch.equal(dense.ids_BL, alone.ids_BL)
    assert dense.memory is not None


def test_draw_of_nothing_still_remembers() -> None:
    head = Head(torch.randn(20, 16), None, Subs(19))
    rule = SampleRule(TokenSampling(), MostProbable(), None, torch.arange(8))
    none_N = torch.zeros(0, dtype=torch.int64)
    drawn = Draw(none_N, rule, remember=Summarize(none_N, top_k=2))(torch.randn(2, 4, 16), head)
    assert drawn.memory is not None
    assert drawn.memory.probs_BLK.shape == (2, 4, 2)
    assert not bool(drawn.memory.probs_BLK.any())


def test_row_noise_depends_on_seed_step_and_position_only() -> None:
    canvas = from_prompts([[1, 2, 3], [4]], new_tokens=5, mask_id=9)
    masked_BL = canvas.open_BL(9)
    together = RowNoise([7, 8], canvas.positions_BL).step(3, masked_BL)
    alone = from_prompts([[4]], new_tokens=5, mask_id=9)
    single = RowNoise([8], alone.positions_BL).step(3, alone.open_BL(9))
    assert canvas.attention_mask_BL is not None
    real_L = canvas.attention_mask_BL[1]
    for many, one in zip(together, single, strict=True):
        assert torch.equal(many[1][real_L] if many.ndim == 2 else many[1], one[0])
    numbers = torch.cat([part.flatten() for part in RowNoise([7], canvas.positions_BL[:1]).step(0, masked_BL)])
    assert numbers.dtype == torch.float64
    later = torch.cat([part.flatten() for part in RowNoise([7], canvas.positions_BL[:1]).step(1, masked_BL)])
    other = torch.cat([part.flatten() for part in RowNoise([6], canvas.positions_BL[:1]).step(0, masked_BL)])
    assert not bool((numbers == later).any())
    assert not bool((numbers == other).any())


def test_row_noise_is_uniform() -> None:
    positions_BL = torch.arange(500).expand(40, 500)
    noise = RowNoise(list(range(40)), positions_BL).step(2, positions_BL > 0)
    for part_BL in noise[:3]:
        counts = torch.histc(part_BL.flatten().float(), 20, 0, 1)
        assert float(((counts - 1000) ** 2 / 1000).sum()) < 50  # chi-square, 19 degrees of freedom: p = 1e-4
        a, b = part_BL[:, :-1].flatten() - 0.5, part_BL[:, 1:].flatten() - 0.5
        assert abs(float((a * b).mean() * 12)) < 4 / 20_000**0.5
