"""Chunked readouts against their plain twins, in values, gradients and memory."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sm_diffusion.diffusion.contracts import Head
from sm_diffusion.diffusion.parameterization import Parameterization, Subs, Unconstrained
from sm_diffusion.diffusion.readouts import chunked, scratch
from sm_diffusion.diffusion.readouts.base import NegLogLikelihood, PlainNegLogLikelihood, PlainSummarize, Summarize

WIDTH = 16


def make(vocab_size: int, *, bias: bool, scale: float, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Head]:
    hidden_BLD = torch.randn(2, 9, WIDTH, dtype=dtype, requires_grad=True)
    weight_VD = (scale * torch.randn(vocab_size, WIDTH, dtype=dtype)).requires_grad_()
    bias_V = torch.randn(vocab_size, dtype=dtype).requires_grad_() if bias else None
    return hidden_BLD, Head(weight_VD, bias_V, Subs(vocab_size - 1))


def gradients(readout: NegLogLikelihood, hidden_BLD: Tensor, head: Head, upstream: float) -> list[Tensor]:
    leaves = [t for t in (hidden_BLD, head.weight_VD, head.bias_V) if t is not None]
    for leaf in leaves:
        leaf.grad = None
    (upstream * readout(hidden_BLD, head).total).backward()
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("chunk", [1, 4, 1000])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("vocab_size", [5, 64, 131])
def test_nll_equals_its_plain_twin(
    monkeypatch: pytest.MonkeyPatch, vocab_size: int, bias: bool, chunk: int
) -> None:
    monkeypatch.setattr(scratch, "chunk_rows", lambda *_: chunk)
    hidden_BLD, head = make(vocab_size, bias=bias, scale=1.0)
    positions_N = torch.tensor([0, 3, 4, 8, 11, 17])
    targets_N = torch.randint(0, vocab_size - 1, (6,))
    weights_N = torch.tensor([1.0, 0.5, 2.0, 0.0, 3.0, 0.1])
    ours = NegLogLikelihood(positions_N, targets_N, weights_N)
    plain = PlainNegLogLikelihood(positions_N, targets_N, weights_N)
    torch.testing.assert_close(ours(hidden_BLD, head).nll_N, plain(hidden_BLD, head).nll_N)
    with torch.no_grad():
        torch.testing.assert_close(ours(hidden_BLD, head).nll_N, plain(hidden_BLD, head).nll_N)
        torch.testing.assert_close(ours(hidden_BLD, head).total, plain(hidden_BLD, head).total)
    for mine, reference in zip(
        gradients(ours, hidden_BLD, head, 0.25), gradients(plain, hidden_BLD, head, 0.25), strict=True
    ):
        torch.testing.assert_close(mine, reference)


def test_nll_survives_probabilities_that_underflow() -> None:
    hidden_BLD, head = make(40, bias=False, scale=200.0)
    positions_N, targets_N = torch.arange(18), torch.randint(0, 39, (18,))
    nll_N = NegLogLikelihood(positions_N, targets_N, torch.ones(18))(hidden_BLD, head).nll_N
    plain_N = PlainNegLogLikelihood(positions_N, targets_N, torch.ones(18))(hidden_BLD, head).nll_N
    assert plain_N.max() > 200
    # A difference of logits of hundreds, each a sum of float32 products: some 2^-20 of the largest, whoever sums.
    torch.testing.assert_close(nll_N, plain_N, rtol=0, atol=1e-6 * float(plain_N.max()) * 4)


def test_nll_of_no_positions_is_zero_and_still_gives_gradients() -> None:
    hidden_BLD, head = make(12, bias=True, scale=1.0)
    none_N = torch.zeros(0, dtype=torch.int64)
    readout = NegLogLikelihood(none_N, none_N, torch.zeros(0))
    assert readout(hidden_BLD, head).total.item() == 0
    assert all(bool((g == 0).all()) for g in gradients(readout, hidden_BLD, head, 1.0))


def test_frozen_head_gets_no_gradient() -> None:
    hidden_BLD, head = make(12, bias=True, scale=1.0)
    frozen = Head(head.weight_VD.detach(), None, head.parameterization)
    positions_N = torch.arange(5)
    total = NegLogLikelihood(positions_N, torch.zeros(5, dtype=torch.int64), torch.ones(5))(hidden_BLD, frozen).total
    total.backward()
    assert hidden_BLD.grad is not None
    assert frozen.weight_VD.grad is None


def test_backward_twice_over_a_retained_graph() -> None:
    hidden_BLD, head = make(12, bias=True, scale=1.0)
    positions_N = torch.arange(5)
    total = NegLogLikelihood(positions_N, torch.zeros(5, dtype=torch.int64), torch.ones(5))(hidden_BLD, head).total
    total.backward(retain_graph=True)
    assert head.weight_VD.grad is not None
    first = head.weight_VD.grad.clone()
    total.backward()
    torch.testing.assert_close(head.weight_VD.grad, 2 * first)


@settings(deadline=None, max_examples=60)
@given(
    vocab_size=st.integers(3, 700),
    top_k=st.integers(1, 8),
    chunk=st.sampled_from([1, 3, 64]),
    scale=st.sampled_from([0.0, 0.3, 3.0, 30.0, 300.0]),
    subs=st.booleans(),
    columns=st.booleans(),
)
def test_summary_equals_its_plain_twin(
    vocab_size: int, top_k: int, chunk: int, scale: float, subs: bool, columns: bool
) -> None:
    top_k = min(top_k, vocab_size - 1)
    generator = torch.Generator().manual_seed(vocab_size * 31 + top_k)
    parameterization: Parameterization = Subs(vocab_size - 1) if subs else Unconstrained()
    hidden_BLD = torch.randn(2, 9, WIDTH, generator=generator)
    weight_VD = scale * torch.randn(vocab_size, WIDTH, generator=generator)
    # Distinct logits even at scale 0, so that the top-k is unique.
    head = Head(weight_VD, torch.randperm(vocab_size, generator=generator) / vocab_size, parameterization)
    positions_N = torch.tensor([1, 2, 5, 17])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch, "chunk_rows", lambda *_: chunk)
        patch.setattr(chunked, "prefers_columns", lambda *_: columns)
        ours = Summarize(positions_N, top_k=top_k)(hidden_BLD, head)
    plain = PlainSummarize(positions_N, top_k=top_k)(hidden_BLD, head)
    assert torch.equal(ours.ids_BLK, plain.ids_BLK)
    # A probability's relative error is the absolute one of its logit, which grows with the logits.
    torch.testing.assert_close(ours.probs_BLK, plain.probs_BLK, atol=1e-6, rtol=max(1e-4, 4e-6 * scale))
    # H is a difference of numbers as large as the logits: its rounding error grows with their scale.
    torch.testing.assert_close(ours.neg_entropy_BL, plain.neg_entropy_BL, atol=5e-7 * max(1.0, 500 * scale), rtol=1e-4)


def test_summary_leaves_other_positions_empty() -> None:
    hidden_BLD, head = make(30, bias=True, scale=1.0)
    memory = Summarize(torch.tensor([4]), top_k=2)(hidden_BLD, head)
    assert memory.probs_BLK.flatten(0, 1).sum(-1).nonzero().flatten().tolist() == [4]


def test_bfloat16_autocast_stays_close_to_float32() -> None:
    hidden_BLD, head = make(131, bias=True, scale=1.0)
    positions_N, targets_N = torch.arange(18), torch.randint(0, 130, (18,))
    readout = NegLogLikelihood(positions_N, targets_N, torch.ones(18))
    exact = gradients(readout, hidden_BLD, head, 1.0)
    with torch.autocast("cpu", torch.bfloat16):
        low = readout(hidden_BLD, head)
        rough = gradients(readout, hidden_BLD, head, 1.0)
    assert low.nll_N.dtype == torch.float32
    for reference, approximate in zip(exact, rough, strict=True):
        assert approximate.dtype == torch.float32
        assert (reference - approximate).norm() < 0.02 * reference.norm()


def test_no_tensor_of_all_logits_is_ever_allocated() -> None:
    vocab_size, rows = 5_000, 4_096
    hidden_BLD = torch.randn(1, rows, WIDTH, requires_grad=True)
    head = Head(torch.randn(vocab_size, WIDTH, requires_grad=True), None, Subs(vocab_size - 1))
    targets_N = torch.zeros(rows, dtype=torch.int64)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            sizes.extend(o.untyped_storage().nbytes() for o in (out if isinstance(out, tuple) else (out,))
                         if isinstance(o, Tensor))
            return out

    with Watch():
        NegLogLikelihood(torch.arange(rows), targets_N, torch.ones(rows))(hidden_BLD, head).total.backward()
        Summarize(torch.arange(rows), top_k=3)(hidden_BLD, head)
    largest = max(sizes)
    assert largest <= 2**26, "a chunk may take the CPU's scratch budget at most"
    assert largest < rows * vocab_size * 4 / 1.2


def test_a_buffer_made_in_inference_mode_serves_training() -> None:
    hidden_BLD, head = make(400, bias=True, scale=1.0)
    positions_N, targets_N = torch.arange(18), torch.randint(0, 399, (18,))
    readout = NegLogLikelihood(positions_N, targets_N, torch.ones(18))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scratch._POOL, "buffers", [], raising=False)
        with torch.inference_mode():
            evaluated = readout(hidden_BLD, head).total
        readout(hidden_BLD, head).total.backward()
        torch.testing.assert_close(evaluated, readout(hidden_BLD, head).total)
