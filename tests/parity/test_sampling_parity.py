"""The samplers against the authors' code: transition distributions, draws, and whole trajectories token for token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.soft_mask import SoftMask
from sm_diffusion.sampling import Ancestral, Canvas, RemdmCap, RemdmLoop, RowNoise, Sampler, TokenSampling
from sm_diffusion.sampling.categorical import nucleus_
from sm_diffusion.sampling.loop import SamplerOutput
from sm_diffusion.sampling.orders.ancestral import TransitionPolicy, transition_probs
from sm_diffusion.sampling.orders.base import State
from sm_diffusion.sampling.reference.published import PublishedRace, Race, exponential
from sm_diffusion.sampling.trajectory import STATES
from tests.helpers.golden import Golden, assert_close, tiny_dit

pytestmark = pytest.mark.parity

POLICIES = {"mdlm": Ancestral, "remdm-cap": RemdmCap, "remdm-loop": RemdmLoop}


def state_of(ids_BL: Tensor, mask_id: int, step: int) -> State:
    return State(
        ids_BL=ids_BL,
        open_BL=torch.ones_like(ids_BL, dtype=torch.bool),
        masked_BL=ids_BL == mask_id,
        confidence_BL=torch.full(ids_BL.shape, -torch.inf, dtype=torch.float64),
        time_B=torch.ones(ids_BL.shape[0], dtype=torch.float64),
        step=step,
    )


def at_time(name: str, t: float) -> TransitionPolicy:
    """A policy whose step 0 starts at t."""
    policy = POLICIES[name](num_steps=128)
    policy.grid.times[0] = float(torch.tensor(t))
    return policy


def prediction(golden: Golden, top_p: float) -> Tensor:
    p_BLV = golden["log_p_x0"].exp()
    if top_p < 1:
        nucleus_(p_BLV.flatten(0, 1), top_p)
        p_BLV /= p_BLV.sum(-1, keepdim=True)
    return p_BLV


def test_nucleus() -> None:
    golden = Golden("samplers")
    ours = prediction(golden, 0.9)
    reference = golden["p_x0_nucleus0.9"]
    assert torch.equal(ours > 0, reference > 0)
    assert_close(ours, reference, 1e-6)


@pytest.mark.parametrize("t", [1.0, 0.8, 0.55, 0.3, 0.05, 0.02])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("name", list(POLICIES))
def test_transition(name: str, top_p: float, t: float) -> None:
    golden = Golden("samplers")
    mask_id = int(golden.meta["mask_id"])
    policy = at_time(name, t)
    assert policy.grid.dt == float(golden["dt"])
    state = state_of(golden["x"], mask_id, 0)
    rates = policy.rates(state)
    key = f"{name}.p{top_p}.t{t}".replace("t0.", "t0p").replace("t1.", "t1p")
    reference = golden[f"{key}.q_xs"].double()
    # Without re-masking the reference computes the masked formula everywhere and copies kept tokens afterwards.
    copies_kept = rates.remask == 0.0
    everywhere = torch.ones_like(state.masked_BL)
    q_BLV = transition_probs(
        prediction(golden, top_p).double(), rates, everywhere if copies_kept else state.masked_BL, mask_id
    )
    assert torch.equal(q_BLV > 0, reference > 0)
    possible = reference > 0
    # Elementwise where float32 carries it (the reference's exp and renormalisation are float32).
    torch.testing.assert_close(q_BLV[possible], reference[possible], rtol=1e-5, atol=1e-9)
    assert_close(q_BLV, reference, 1e-5, key)

    generator = torch.Generator().manual_seed(5)
    race = PublishedRace(policy, mask_id=mask_id, vocab_size=q_BLV.shape[-1], generator=generator)
    proposal = race.propose(state, RowNoise([0, 0], torch.zeros_like(golden["x"])).step(0, state.masked_BL))
    p_CV, all_C = prediction(golden, top_p).flatten(0, 1), torch.arange(state.ids_BL.numel())
    assert proposal.drawer is not None
    assert proposal.measure is not None
    assert proposal.choose is not None
    drawn_C = proposal.drawer(p_CV, all_C)
    ratio_BL = proposal.measure(p_CV, drawn_C, all_C).view_as(state.ids_BL)
    xs = torch.where(state.masked_BL & proposal.choose(ratio_BL), drawn_C.view_as(state.ids_BL), state.ids_BL)
    if proposal.remask_BL is not None and not copies_kept:
        xs = xs.masked_fill(proposal.remask_BL, mask_id)
    assert torch.equal(xs, golden[f"{key}.xs_seed5"])


def test_categorical_draw() -> None:
    golden = Golden("samplers")
    q_CV, u_CV = golden["cat.q"].flatten(0, 1), golden["cat.seed9_u"].flatten(0, 1)
    drawn_C = Race(exponential(u_CV))(q_CV, torch.arange(q_CV.shape[0]))
    assert torch.equal(drawn_C, golden["cat.seed9_sample"].flatten())
    generator = torch.Generator().manual_seed(9)
    assert torch.equal(torch.rand((3, 5, 98), generator=generator, dtype=torch.float64), golden["cat.seed9_u"])


def predictor_of(name: str, mask_id: int) -> Predictor:
    if name == "mdlm":
        return HardMaskPredictor(tiny_dit(), mask_id=mask_id)
    soft_mask = SoftMask(top_k=3, omega_s=0.6, omega_a=2.0, omega_b=-2.0)
    return SoftMaskPredictor(tiny_dit(), soft_mask, mask_id=mask_id, mixing=mixing.linear)


def reproduce(golden: Golden, key: str) -> SamplerOutput:
    model, policy_name = key.split(".")[:2]
    top_p = float(key.split(".p")[1][:3])
    mask_id, short = int(golden.meta["mask_id"]), key.endswith("eps0.3")
    policy = POLICIES[policy_name](num_steps=6 if short else int(golden.meta["steps"]), eps=0.3 if short else 1e-5)
    generator = torch.Generator().manual_seed(int(golden.meta["seed"]))
    race = PublishedRace(policy, mask_id=mask_id, vocab_size=98, generator=generator)
    sampler = Sampler(
        predictor_of(model, mask_id), race, sampling=TokenSampling(top_p=top_p), reuse="batch"
    )
    canvas = Canvas(torch.full((2, 16), mask_id))
    return sampler.sample(canvas, RowNoise([0, 1], canvas.positions_BL), record=True)


KEYS = sorted({key.removesuffix(".final") for key in Golden("trajectories").keys if key.endswith(".final")})


@pytest.mark.parametrize("key", KEYS)
def test_whole_trajectory(key: str) -> None:
    golden = Golden("trajectories")
    mask_id = int(golden.meta["mask_id"])
    steps_TBL = golden[f"{key}.x_steps"]
    out = reproduce(golden, key)
    assert out.trajectory is not None
    frames = out.trajectory.frames
    for step in range(out.num_steps):
        assert torch.equal(frames[step + 1].ids_BL, steps_TBL[step]), f"after step {step}"
    for step in range(out.num_steps, len(steps_TBL)):  # a finished text is not walked on
        assert torch.equal(out.ids_BL, steps_TBL[step])
    assert torch.equal(out.ids_BL, golden[f"{key}.final"])

    # NFE. The reference also evaluates rows without masks, where a prediction cannot matter; we do not.
    before_TBL = torch.cat([torch.full_like(steps_TBL[:1], mask_id), steps_TBL[:-1]])
    useful_TB = (before_TBL == mask_id).any(2)
    evaluated_T = ~golden[f"{key}.cache_used"]
    last_left_B = (steps_TBL[-1] == mask_id).any(1)
    assert torch.equal(out.nfe_B, (evaluated_T[:, None] & useful_TB).sum(0) + last_left_B)
    assert int(golden[f"{key}.nfe"]) == int(evaluated_T.sum()) + 1

    # Feedback: none in the first evaluation, then always (soft-masking), never (MDLM).
    soft = STATES.index("soft")
    feedback_F = golden[f"{key}.feedback_per_forward"]
    assert feedback_F.tolist() == [-1] + [1 if key.startswith("mdlm_sm") else -1] * (len(feedback_F) - 1)
    for index, frame in enumerate(frames):
        masked_BL = frame.ids_BL == mask_id
        expected = masked_BL if key.startswith("mdlm_sm") and index > 0 else torch.zeros_like(masked_BL)
        assert torch.equal((frame.state_BL == soft) | ((frame.lambda_BL > 0) & masked_BL), expected)


def test_remasked_positions_feed_back_their_token() -> None:
    golden = Golden("trajectories")
    out = reproduce(golden, "mdlm_sm.remdm-cap.p0.9")
    assert out.trajectory is not None
    remasked, seen = STATES.index("remasked"), 0
    for before, frame in zip(out.trajectory.frames, out.trajectory.frames[1:], strict=False):
        assert frame.blend_ids_BLK is not None
        for row, position in (frame.state_BL == remasked).nonzero().tolist():
            seen += 1
            assert frame.blend_ids_BLK[row, position, 0] == before.ids_BL[row, position]
            assert frame.blend_probs_BLK is not None
            assert frame.blend_probs_BLK[row, position].tolist() == [1.0, 0.0, 0.0]
            # H = 0: lambda = 0.6 sigmoid(2 (0 + 2)).
            assert frame.lambda_BL[row, position].item() == pytest.approx(0.6 * 0.982014, rel=1e-4)
    assert seen > 0


CACHED = sorted({key.removesuffix(".final") for key in Golden("sampler_cache").keys if key.endswith(".final")})


@pytest.mark.parametrize("key", CACHED)
def test_prediction_used_again_when_nothing_changed(key: str) -> None:
    """Batches of one, by our rule for rows; of two, by theirs for the batch."""
    golden = Golden("sampler_cache")
    pair = "batch2" in key
    model, top_p = key.split(".")[0], float(key.split(".p")[1][:3])
    mask_id, num_steps = int(golden.meta["mask_id"]), int(golden.meta["T"])
    seed = int(key.split("seed")[1].split(".")[0]) if "seed" in key else 1
    race = PublishedRace(
        Ancestral(num_steps=num_steps, eps=1e-5),
        mask_id=mask_id,
        vocab_size=int(golden.meta["vocab"]),
        generator=torch.Generator().manual_seed(seed),
    )
    sampler = Sampler(
        predictor_of(model, mask_id),
        race,
        sampling=TokenSampling(top_p=top_p),
        reuse="batch" if pair else "rows",
    )
    canvas = Canvas(torch.full((2 if pair else 1, 16), mask_id))
    out = sampler.sample(canvas, RowNoise(list(range(len(canvas.ids_BL))), canvas.positions_BL), record=True)
    assert out.trajectory is not None
    steps_TBL = golden[f"{key}.x_steps"].long().view(num_steps, -1, 16)
    for step in range(out.num_steps):
        assert torch.equal(out.trajectory.frames[step + 1].ids_BL, steps_TBL[step]), f"after step {step}"
    assert torch.equal(out.ids_BL, golden[f"{key}.final"].long().view(-1, 16))
    if pair:
        return
    left = int(golden[f"{key}.num_masks_left"][-1])
    evaluated = golden[f"{key}.forwards_so_far"][: out.num_steps][-1]
    assert int(out.nfe_B[0]) == int(evaluated) + (left > 0)
    if model == "mdlm_sm":  # what is used again is not fed back
        assert not bool((golden[f"{key}.cache_reused"] & golden[f"{key}.feedback_refreshed"]).any())
