"""Block-wise decoding, and caches of keys and values: exact where they say so, and rows that do not know each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sm_diffusion import registry
from sm_diffusion.denoisers.dit.model import DiT, DiTShape
from sm_diffusion.denoisers.pretrained.hf import HFDenoiser
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.readouts.base import Logits
from sm_diffusion.diffusion.soft_mask import FullVocabularySoftMask, LinearStrength, SoftMask
from sm_diffusion.sampling import (
    Ancestral,
    Blockwise,
    CacheScope,
    ConfidenceOrder,
    DualCache,
    Origin,
    PrefixCache,
    RandomOrder,
    RemdmConf,
    RowNoise,
    Sampler,
    SamplerOutput,
    Threshold,
    Timetable,
    TokenSampling,
    UnmaskPolicy,
    build_measure,
    from_prompts,
)
from sm_diffusion.sampling.cache import positions_of_rows
from sm_diffusion.types import UserError
from tests.helpers.qwen import MASK, VOCAB, tiny_llama, tiny_qwen

NEW, BLOCK = 12, 4


def order(measure: str, pace: str) -> Callable[[], UnmaskPolicy]:
    paces = {"timetable": lambda: Timetable(num_steps=3), "threshold": lambda: Threshold(value=THRESHOLDS[measure])}
    return lambda: ConfidenceOrder(measure=build_measure(measure), pace=paces[pace]())


THRESHOLDS = {"entropy": -4.2, "margin": 0.02, "probability": 0.06}
ORDERS: dict[str, Callable[[], UnmaskPolicy]] = {
    **{
        f"{measure}_{pace}": order(measure, pace)
        for measure in registry.names("measure")
        for pace in ("timetable", "threshold")
    },
    "origin": lambda: Origin(num_steps=3),
    "random": lambda: RandomOrder(num_steps=3),
}
CACHES: dict[str, Callable[[], CacheScope | None]] = {
    "none": lambda: None,
    "prefix": PrefixCache,
    "dual": DualCache,
    "dual_2": lambda: DualCache(refresh_steps=2),
}
PROMPTS = [[5, 9, 21], [7], [30, 31, 32, 33, 34, 35], [1, 2]]
SEEDS = [11, 12, 13, 14]


def predictor_of(kind: str, denoiser: HFDenoiser | None = None) -> Predictor:
    denoiser = tiny_qwen() if denoiser is None else denoiser
    if kind == "mdlm":
        return HardMaskPredictor(denoiser, mask_id=MASK)
    soft = SoftMask(top_k=2, omega_s=0.8, omega_a=1.0, omega_b=-4.0)
    return SoftMaskPredictor(denoiser, soft, mask_id=MASK, mixing=mixing.linear)


def run(sampler: Sampler, rows: list[int], side: str = "left") -> tuple[SamplerOutput, dict[int, list[int]]]:
    canvas = from_prompts([PROMPTS[row] for row in rows], new_tokens=NEW, mask_id=MASK, padding_side=side)
    out = sampler.sample(canvas, RowNoise([SEEDS[row] for row in rows], canvas.positions_BL))
    return out, dict(zip(rows, canvas.texts(out.ids_BL), strict=True))


def sampler_of(predictor: Predictor, name: str, cache: CacheScope | None, temperature: float = 0.7) -> Sampler:
    policy = Blockwise(ORDERS[name](), block_length=BLOCK)
    sampling = TokenSampling(temperature=temperature, top_p=0.95, keep_crossing=True)
    return Sampler(predictor, policy, sampling=sampling, strength=LinearStrength(), cache=cache)


@pytest.mark.parametrize("kind", ["mdlm", "sm"])
@pytest.mark.parametrize("scope", [PrefixCache, DualCache])
@pytest.mark.parametrize("name", list(ORDERS))
def test_refreshed_in_every_step_the_tokens_are_the_uncached_ones(name: str, scope: type, kind: str) -> None:
    predictor = predictor_of(kind)
    plain, expected = run(sampler_of(predictor, name, None), [0, 1, 2, 3])
    cached, found = run(sampler_of(predictor, name, scope(refresh_steps=1)), [0, 1, 2, 3])
    assert found == expected
    assert torch.equal(plain.nfe_B, cached.nfe_B)


@pytest.mark.parametrize(("kind", "scope"), [("mdlm", PrefixCache), ("mdlm", DualCache), ("sm", PrefixCache)])
@pytest.mark.parametrize("shift", [True, False])
def test_with_one_layer_the_caches_are_exact(kind: str, scope: type, shift: bool) -> None:
    """Keys of a first layer depend on the inputs alone, and the inputs outside the window do not change."""
    predictor = predictor_of(kind, tiny_qwen(num_hidden_layers=1, shift_logits=shift))
    for name in ("entropy_threshold", "probability_timetable", "origin"):
        assert run(sampler_of(predictor, name, scope()), [0, 1, 2, 3], "right")[1] == (
            run(sampler_of(predictor, name, None), [0, 1, 2, 3], "right")[1]
        )


def one_cache_each() -> list[object]:
    """Every order with every cache, plain and soft-masked; by default one cache for each order and kind, in turn."""
    cases: list[object] = []
    for (i, name), (j, cache), (k, kind) in itertools.product(
        enumerate(ORDERS), enumerate(CACHES), enumerate(["mdlm", "sm"])
    ):
        by_default = (i + 2 * k) % len(CACHES) == j
        cases.append(pytest.param(name, cache, kind, marks=() if by_default else pytest.mark.slow))
    return cases


@pytest.mark.parametrize(("name", "cache", "kind"), one_cache_each())
def test_a_row_depends_on_its_own_seed_only(name: str, cache: str, kind: str) -> None:
    # In float64: float32 sums differ with the batch in the 7th digit, and a threshold may fall in between.
    sampler = sampler_of(predictor_of(kind).double(), name, CACHES[cache]())
    alone = {row: text for row in range(4) for text in run(sampler, [row])[1].values()}
    for row, text in alone.items():
        assert len(text) == len(PROMPTS[row]) + NEW
        assert text[: len(PROMPTS[row])] == PROMPTS[row]
        assert MASK not in text
    for rows, side in [([0, 1], "left"), ([3, 1, 0, 2], "right"), ([2, 0], "right"), ([0, 1, 2, 3], "left")]:
        assert run(sampler, rows, side)[1] == {row: alone[row] for row in rows}, (rows, side)


def test_llama_without_a_shift_is_cached_too() -> None:
    for kind in ("mdlm", "sm"):
        predictor = predictor_of(kind, tiny_llama())
        for scope in (PrefixCache, DualCache):
            exact = run(sampler_of(predictor, "entropy_threshold", scope(refresh_steps=1)), [0, 2])[1]
            assert exact == run(sampler_of(predictor, "entropy_threshold", None), [0, 2])[1]


@pytest.mark.parametrize("name", ["entropy_timetable", "margin_threshold"])
def test_blocks_are_filled_from_left_to_right(name: str) -> None:
    canvas = from_prompts([PROMPTS[0], PROMPTS[1]], new_tokens=NEW, mask_id=MASK)
    sampler = sampler_of(predictor_of("sm"), name, None)
    out = sampler.sample(canvas, RowNoise([1, 2], canvas.positions_BL), record=True)
    assert out.trajectory is not None
    for frame in out.trajectory.frames:
        for row in (frame.ids_BL[:, -NEW:] == MASK).tolist():
            blocks = [row[start : start + BLOCK] for start in range(0, NEW, BLOCK)]
            begun = [not all(block) for block in blocks]
            assert begun == sorted(begun, reverse=True)
            assert not any(any(block) for block, after in zip(blocks, begun[1:], strict=False) if after)
    if name == "entropy_timetable":
        assert out.num_steps == 3 * NEW // BLOCK


def test_one_block_is_the_inner_order() -> None:
    predictor = predictor_of("sm")
    for name, make in ORDERS.items():
        whole = Sampler(predictor, Blockwise(make(), block_length=NEW), sampling=TokenSampling(temperature=0.5))
        inner = Sampler(predictor, make(), sampling=TokenSampling(temperature=0.5))
        assert run(whole, [0, 1, 2])[1] == run(inner, [0, 1, 2])[1], name


def computed_and_agreement(scope: CacheScope | None, kind: str) -> tuple[float, float]:
    """(positions computed, share of tokens equal to the uncached ones) over several tiny networks."""
    counted, equal, total = 0, 0, 0
    for seed in range(6):
        predictor = predictor_of(kind, tiny_qwen(seed=seed))
        layer = predictor.denoiser.lm.model.layers[0]  # type: ignore[union-attr]
        sizes: list[int] = []
        hook = layer.register_forward_pre_hook(lambda _, inputs, sizes=sizes: sizes.append(inputs[0].shape[1]))
        found = run(sampler_of(predictor, "probability_timetable", scope, temperature=0.0), [2])[1]
        hook.remove()
        counted += sum(sizes)
        plain = run(sampler_of(predictor, "probability_timetable", None, temperature=0.0), [2])[1]
        equal += sum(a == b for a, b in zip(found[2][-NEW:], plain[2][-NEW:], strict=True))
        total += NEW
    return counted, equal / total


def test_what_caches_save_and_what_they_change() -> None:
    """The numbers of docs/dream.md. Random networks: nothing makes neighbours agree as in a trained one."""
    for kind in ("mdlm", "sm"):
        full, same = computed_and_agreement(None, kind)
        assert same == 1
        shares = {}
        for name, scope in (("prefix", PrefixCache()), ("dual", DualCache()), ("dual/2", DualCache(refresh_steps=2))):
            counted, agreement = computed_and_agreement(scope, kind)
            shares[name] = counted / full
            print(f"{kind} {name}: {counted / full:.2f} of the positions, {agreement:.2f} of the tokens equal")
            assert agreement > 0.3
        assert shares["dual"] < shares["dual/2"] < 1
        assert shares["dual"] < shares["prefix"] < 1


def test_windows() -> None:
    block_RL = torch.tensor([[0, 0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1]]).bool()
    assert DualCache().window(block_RL).long().tolist() == [[0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 1, 1]]
    assert PrefixCache().window(block_RL).long().tolist() == [[0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1]]
    assert positions_of_rows(DualCache().window(block_RL)).tolist() == [[2, 3, 4], [5, 6, 5]]


def test_a_full_window_gives_the_plain_logits_and_a_part_of_it_too() -> None:
    denoiser = tiny_qwen()
    ids_BL = torch.randint(0, VOCAB - 2, (3, 9), generator=torch.Generator().manual_seed(0))
    mask_BL = torch.arange(9) < torch.tensor([[9], [6], [4]])
    with torch.no_grad():
        plain = denoiser(ids_BL, Logits(), mixing=mixing.linear, attention_mask_BL=mask_BL)
        store, rows_B = denoiser.new_store(3, 9), torch.arange(3)

        def windowed(rows_R: Tensor, positions_RW: Tensor) -> Tensor:
            with denoiser.windowed(store, rows_R, positions_RW):
                ids_RW = ids_BL[rows_R].gather(1, positions_RW)
                return denoiser(ids_RW, Logits(), mixing=mixing.linear, attention_mask_BL=mask_BL[rows_R])

        full = windowed(rows_B, positions_of_rows(mask_BL))
        torch.testing.assert_close(full[mask_BL], plain[mask_BL], atol=1e-4, rtol=0)
        part = windowed(torch.tensor([2, 0]), torch.tensor([[1, 2, 3], [3, 4, 5]]))
        torch.testing.assert_close(part[0, 2:4], plain[2, 2:4], atol=1e-4, rtol=0)
        torch.testing.assert_close(part[1, 4:6], plain[0, 4:6], atol=1e-4, rtol=0)
        again = denoiser(ids_BL, Logits(), mixing=mixing.linear, attention_mask_BL=mask_BL)
    assert torch.equal(again, plain)


def _dit() -> Predictor:
    shape = DiTShape(vocab_size=12, width=8, num_blocks=1, num_heads=2, cond_width=4)
    return HardMaskPredictor(DiT(shape, parameterization=Subs(11)), mask_id=11)


def _dense() -> Predictor:
    soft = FullVocabularySoftMask(temperature=1.0, omega_s=0.3, omega_a=1.0, omega_b=-1.0)
    return SoftMaskPredictor(tiny_qwen(), soft, mask_id=MASK, mixing=mixing.linear)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda: Blockwise(Origin(num_steps=3), block_length=0), r"sampler\.block_length=0: must be >= 1"),
        (lambda: Blockwise(RemdmConf(num_steps=3), block_length=4), "masks finished tokens again"),
        (lambda: DualCache(refresh_steps=0), r"sampler\.refresh_steps=0: must be >= 1"),
        (lambda: Sampler(predictor_of("sm"), Ancestral(num_steps=3), cache=DualCache()), "caches follow blocks"),
        (lambda: run(sampler_of(_dit(), "origin", PrefixCache()), [1]), "DiT keeps no keys and values"),
        (lambda: run(sampler_of(_dense(), "origin", PrefixCache()), [1]), "not with soft_mask.full_vocabulary"),
    ],
)
def test_bad_input_is_refused_in_one_line(what: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        what()
    assert "\n" not in str(caught.value)
