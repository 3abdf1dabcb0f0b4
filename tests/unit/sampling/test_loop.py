"""The loop: rows that do not depend on each other, passes that are not made, memory that is not taken, bad input."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sm_diffusion import registry
from sm_diffusion.diffusion.readouts import scratch
from sm_diffusion.diffusion.schedule import LogLinear
from sm_diffusion.diffusion.soft_mask import LinearStrength, StrengthSchedule
from sm_diffusion.sampling import (
    Ancestral,
    Canvas,
    ConfidenceOrder,
    FirstHitting,
    Origin,
    RandomOrder,
    RemdmCap,
    RemdmConf,
    RemdmLoop,
    RemdmRescale,
    RowNoise,
    Sampler,
    Threshold,
    Timetable,
    TokenSampling,
    UnmaskPolicy,
    blank,
    build_measure,
    from_prompts,
    from_rows,
)
from sm_diffusion.sampling.orders.base import top_n
from sm_diffusion.sampling.trajectory import STATES, Frame
from sm_diffusion.types import UserError
from tests.helpers.networks import MASK, make_predictor

EVERY_POLICY: dict[str, Callable[[], UnmaskPolicy]] = {
    "ancestral": lambda: Ancestral(num_steps=6),
    "remdm_cap": lambda: RemdmCap(num_steps=6, eta=0.3),
    "remdm_rescale": lambda: RemdmRescale(num_steps=6, eta=0.5),
    "remdm_conf": lambda: RemdmConf(num_steps=6),
    "remdm_loop": lambda: RemdmLoop(num_steps=6, eta=0.1),
    "first_hitting": lambda: FirstHitting(),
    "first_hitting_2": lambda: FirstHitting(tokens_per_step=2),
    "entropy": lambda: ConfidenceOrder(measure=build_measure("entropy"), pace=Timetable(num_steps=5)),
    "margin": lambda: ConfidenceOrder(measure=build_measure("margin"), pace=Timetable(num_steps=5), alg_temp=0.1),
    "probability": lambda: ConfidenceOrder(measure=build_measure("probability"), pace=Threshold(value=0.2)),
    "random": lambda: RandomOrder(num_steps=5),
    "origin": lambda: Origin(num_steps=5),
}
PROMPTS = [[5, 9, 21], [7], [30, 31, 32, 33, 34, 35], [1, 2], [8, 8, 8]]
SEEDS = [11, 12, 13, 14, 15]


def texts(sampler: Sampler, rows: list[int], side: str) -> dict[int, list[int]]:
    canvas = from_prompts([PROMPTS[row] for row in rows], new_tokens=7, mask_id=MASK, padding_side=side)
    out = sampler.sample(canvas, RowNoise([SEEDS[row] for row in rows], canvas.positions_BL))
    return dict(zip(rows, canvas.texts(out.ids_BL), strict=True))


@pytest.mark.parametrize("kind", ["mdlm", "sm", "dense"])
@pytest.mark.parametrize("name", list(EVERY_POLICY))
def test_a_row_depends_on_its_own_seed_only(name: str, kind: str) -> None:
    sampler = Sampler(make_predictor(kind), EVERY_POLICY[name](), sampling=TokenSampling(temperature=1.2, top_p=0.9))
    alone = {row: text for row in range(5) for text in texts(sampler, [row], "left").values()}
    for row, text in alone.items():
        assert len(text) == len(PROMPTS[row]) + 7
        assert text[: len(PROMPTS[row])] == PROMPTS[row]
        assert MASK not in text
    for rows, side in [([0, 1], "left"), ([0, 1, 2, 3, 4], "left"), ([3, 4, 1, 0, 2], "right"), ([2, 0], "right")]:
        assert texts(sampler, rows, side) == {row: alone[row] for row in rows}, (rows, side)


def test_rows_with_equal_seeds_and_prompts_agree_and_others_differ() -> None:
    sampler = Sampler(make_predictor("sm"), Ancestral(num_steps=8))
    canvas = blank(4, 12, mask_id=MASK)
    ids = sampler.sample(canvas, RowNoise([1, 2, 1, 3], canvas.positions_BL)).ids_BL
    assert torch.equal(ids[0], ids[2])
    assert not torch.equal(ids[0], ids[1])
    assert not torch.equal(ids[1], ids[3])


@pytest.mark.parametrize("kind", ["mdlm", "sm"])
def test_time_conditioned_rows_and_strength_schedules(kind: str) -> None:
    """First-hitting gives every row its own time, so its own noise level and feedback strength."""
    predictor = make_predictor(kind)
    predictor.denoiser.time_conditioning = True  # type: ignore[assignment]
    for policy in (FirstHitting(), Ancestral(num_steps=6)):
        sampler = Sampler(predictor, policy, schedule=LogLinear(), strength=LinearStrength())
        alone = {row: text for row in range(3) for text in texts(sampler, [row], "left").values()}
        assert texts(sampler, [2, 0, 1], "right") == {row: alone[row] for row in (2, 0, 1)}


class NoStrength(StrengthSchedule):
    def __call__(self, t: float) -> float:
        return 0.0


@pytest.mark.parametrize("name", ["ancestral", "remdm_cap", "remdm_conf", "origin", "entropy"])
def test_skipped_passes_change_nothing(name: str) -> None:
    """Soft-masking of strength 0 is MDLM without skipping: the same text, from more passes."""
    policies = {
        "ancestral": Ancestral(num_steps=60),
        "remdm_cap": RemdmCap(num_steps=60, eta=0.02),
        "remdm_conf": RemdmConf(num_steps=60),
        "origin": Origin(num_steps=60),
        "entropy": ConfidenceOrder(measure=build_measure("entropy"), pace=Timetable(num_steps=60)),
    }
    canvas = blank(3, 10, mask_id=MASK)
    noise = RowNoise([4, 5, 6], canvas.positions_BL)
    lazy = Sampler(make_predictor("mdlm"), policies[name]).sample(canvas, noise)
    eager = Sampler(make_predictor("sm"), policies[name], strength=NoStrength()).sample(canvas, noise)
    assert torch.equal(lazy.ids_BL, eager.ids_BL)
    assert lazy.forward_passes < eager.forward_passes
    assert bool((lazy.nfe_B < eager.nfe_B).all())
    assert bool((lazy.nfe_B <= lazy.forward_passes).all())


def test_evaluations_are_counted_per_row() -> None:
    canvas = from_prompts([[1], [2]], new_tokens=6, mask_id=MASK)
    canvas.ids_BL[1, 3:] = 5  # the second row has two masks only
    out = Sampler(make_predictor("mdlm"), FirstHitting()).sample(canvas, RowNoise([1, 2], canvas.positions_BL))
    assert out.nfe_B.tolist() == [6, 2]
    assert out.forward_passes == 6
    assert out.num_steps == 6


def test_threshold_takes_as_many_as_pass_and_at_least_one() -> None:
    predictor, canvas = make_predictor("mdlm"), blank(2, 9, mask_id=MASK)
    noise = RowNoise([1, 2], canvas.positions_BL)

    def steps(value: float) -> int:
        policy = ConfidenceOrder(measure=build_measure("probability"), pace=Threshold(value=value))
        return Sampler(predictor, policy).sample(canvas, noise).num_steps

    assert steps(0.0) == 1
    assert steps(1.1) == 9
    assert any(1 < steps(value) < 9 for value in (0.2, 0.25, 0.35, 0.4, 0.5, 0.7))


def test_rounding_does_not_decide_an_order() -> None:
    score_BL = torch.tensor([[0.5, 0.5 + 1e-7, 0.2, 0.9, 0.2 + 1e-7, 0.7]], dtype=torch.float64)
    all_BL = torch.ones_like(score_BL, dtype=torch.bool)
    for count, expected in [(1, [3]), (3, [0, 3, 5]), (4, [0, 1, 3, 5]), (5, [0, 1, 2, 3, 5])]:
        chosen_BL = top_n(score_BL, all_BL, torch.tensor([count]), tie=1e-5)
        assert chosen_BL[0].nonzero().flatten().tolist() == expected
    assert top_n(score_BL, score_BL < 0.6, torch.tensor([1])).nonzero().tolist() == [[0, 1]]
    assert not bool(top_n(score_BL, score_BL > 1, torch.tensor([3])).any())


def test_timetable_gives_each_row_its_share() -> None:
    counts = []
    canvas = blank(1, 16, mask_id=MASK)
    policy = ConfidenceOrder(measure=build_measure("margin"), pace=Timetable(num_steps=8))
    Sampler(make_predictor("sm"), policy).sample(
        canvas,
        RowNoise([1], canvas.positions_BL),
        observe=lambda frame: counts.append(int((frame.ids_BL == MASK).sum())),
    )
    assert counts == [16, 15, 13, 11, 9, 7, 5, 3, 0]  # Dream's own numbers: floor(left * (1 - s / t))


def test_infilling_keeps_every_given_token() -> None:
    rows = [[1, MASK, 3, MASK, MASK, 6], [MASK, 2, MASK]]
    canvas = from_rows(rows, mask_id=MASK)
    for kind in ("mdlm", "sm"):
        out = Sampler(make_predictor(kind), RemdmCap(num_steps=12, eta=0.4)).sample(
            canvas, RowNoise([1, 2], canvas.positions_BL)
        )
        for before, after in zip(rows, canvas.texts(out.ids_BL), strict=True):
            assert len(before) == len(after)
            assert all(b == MASK or a == b for b, a in zip(before, after, strict=True))
            assert MASK not in after


def test_published_cache_reuses_the_prediction_without_feeding_it_back() -> None:
    """With the cache an unchanged step costs no evaluation; the text is another one under feedback."""
    canvas = blank(2, 6, mask_id=MASK)
    noise = RowNoise([3, 4], canvas.positions_BL)

    def run(kind: str, reuse: str):
        return Sampler(make_predictor(kind), Ancestral(num_steps=80), reuse=reuse).sample(canvas, noise)

    for reuse in ("rows", "batch"):
        assert torch.equal(run("mdlm", reuse).ids_BL, run("mdlm", "never").ids_BL)
        assert int(run("sm", reuse).nfe_B.max()) < int(run("sm", "never").nfe_B.max())


@pytest.mark.parametrize("kind", ["sm", "dense", "mdlm"])
@pytest.mark.parametrize("order", [Ancestral(num_steps=40), RemdmCap(num_steps=40, eta=0.02)])
def test_reuse_by_rows_knows_no_neighbours(kind: str, order) -> None:
    """A row's text and evaluations are what they are alone, where the authors' rule and this one agree."""
    canvas, seeds = blank(4, 7, mask_id=MASK), [3, 4, 5, 6]
    sampler = Sampler(make_predictor(kind), order, reuse="rows")
    together = sampler.sample(canvas, RowNoise(seeds, canvas.positions_BL))
    for row, seed in enumerate(seeds):
        one = blank(1, 7, mask_id=MASK)
        for reuse in ("rows", "batch"):
            alone = Sampler(make_predictor(kind), order, reuse=reuse).sample(one, RowNoise([seed], one.positions_BL))
            assert torch.equal(alone.ids_BL[0], together.ids_BL[row])
            assert int(alone.nfe_B[0]) == int(together.nfe_B[row])


def test_trajectory_is_serialisable_and_tells_every_state() -> None:
    canvas = from_prompts([[5, 6, 7], [8]], new_tokens=8, mask_id=MASK)
    seen: list[Frame] = []
    for kind in ("sm", "dense", "mdlm"):
        seen.clear()
        sampler = Sampler(make_predictor(kind), RemdmCap(num_steps=10, eta=0.3))
        out = sampler.sample(canvas, RowNoise([1, 2], canvas.positions_BL), record=True, observe=seen.append)
        assert out.trajectory is not None
        assert len(seen) == len(out.trajectory.frames) >= out.num_steps + 1
        tree = json.loads(json.dumps(out.trajectory.to_json()))
        states = {STATES[code] for frame in tree["frames"] for row in frame["state"] for code in row}
        expected = {"padding", "given", "masked", "drawn", "kept", "remasked"}
        assert states >= (expected | {"soft"} if kind != "mdlm" else expected)
        assert tree["frames"][-1]["ids"] == out.ids_BL.tolist()
        soft = [spot for frame in tree["frames"] for row in frame["soft"] for spot in row.values()]
        assert bool(soft) == (kind != "mdlm")
        for spot in soft:
            assert 0 < spot["lambda"] <= 0.8
            assert sum(share for _, share in spot["blend"]) <= 1 + 1e-4


def test_no_tensor_of_all_logits_is_ever_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    vocab_size, rows, length = 5_000, 4, 64
    monkeypatch.setattr(scratch, "chunk_rows", lambda *_: 32)
    sizes: list[int] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(o.untyped_storage().nbytes() for o in (out if isinstance(out, tuple) else (out,))
                         if isinstance(o, Tensor))
            return out

    canvas = blank(rows, length, mask_id=vocab_size - 1)
    noise = RowNoise(list(range(rows)), canvas.positions_BL)
    confidence = ConfidenceOrder(measure=build_measure("entropy"), pace=Timetable(num_steps=2))
    for kind in ("mdlm", "sm"):
        predictor = make_predictor(kind, vocab_size=vocab_size)
        for policy in (Ancestral(num_steps=3), RemdmConf(num_steps=3), confidence):
            with Watch():
                Sampler(predictor, policy, sampling=TokenSampling(top_p=0.9, top_k=50)).sample(canvas, noise)
    assert max(sizes) < rows * length * vocab_size * 4 / 3


def test_the_network_is_left_in_the_mode_it_was_in() -> None:
    predictor = make_predictor("mdlm").train()
    canvas = blank(1, 4, mask_id=MASK)
    Sampler(predictor, Ancestral(num_steps=2)).sample(canvas, RowNoise([1], canvas.positions_BL))
    assert predictor.training


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda: from_prompts([[2] * 9], new_tokens=4, mask_id=MASK, max_length=12), "exceeds the model's length 12"),
        (lambda: from_prompts([[1, MASK]], new_tokens=4, mask_id=MASK), "holds the mask token"),
        (lambda: from_prompts([[1]], new_tokens=0, mask_id=MASK), "new_tokens=0"),
        (lambda: from_prompts([[1]], new_tokens=1, mask_id=MASK, padding_side="top"), "left, right"),
        (lambda: from_prompts([], new_tokens=1, mask_id=MASK), "no prompts"),
        (lambda: from_rows([[1, 2]], mask_id=MASK), "nothing to fill"),
        (lambda: from_rows([[MASK] * 9], mask_id=MASK, max_length=8), "exceeds the model's length 8"),
        (lambda: blank(0, 5, mask_id=MASK), "nothing to generate"),
        (lambda: Ancestral(num_steps=0), "num_steps=0"),
        (lambda: Timetable(num_steps=-1), "num_steps=-1"),
        (lambda: Ancestral(num_steps=1, eps=0.0), "eps=0.0"),
        (lambda: FirstHitting(tokens_per_step=0), "tokens_per_step=0"),
        (lambda: RemdmCap(num_steps=4, eta=1.5), "eta=1.5"),
        (lambda: RemdmLoop(num_steps=4, eta=0.5), "eta=0.5"),
        (lambda: RemdmLoop(num_steps=4, t_on=0.1, t_off=0.2), "t_off=0.2"),
        (lambda: TokenSampling(top_p=0), "top_p=0"),
        (lambda: TokenSampling(temperature=-1), "temperature=-1"),
        (lambda: TokenSampling(top_k=0), "top_k=0"),
        (lambda: registry.find("sampler", "ddim"), "sampler=ddim: unknown; choose one of ancestral, first_hitting,"),
        (lambda: RowNoise([1], torch.zeros(2, 3, dtype=torch.int64)), "one seed a row"),
        (
            lambda: ConfidenceOrder(measure=build_measure("margin"), pace=Threshold(value=0.5), alg_temp=0.3),
            "alg_temp=0.3",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(what: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError) as error:
        what()
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert isinstance(blank(1, 1, mask_id=0), Canvas)
