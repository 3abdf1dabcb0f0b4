"""Dream's generation, plain and soft-masked, token for token in all four orders, step by step."""

from __future__ import annotations

import ast

import pytest
import torch
from torch import Tensor

from sm_diffusion.denoisers.adapters.transparency import TransparencyConfig
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.soft_mask import ConstantStrength, LinearStrength
from sm_diffusion.sampling import (
    Canvas,
    ConfidenceOrder,
    Noise,
    Origin,
    RowNoise,
    Sampler,
    Timetable,
    TokenSampling,
    UnmaskPolicy,
    from_prompts,
)
from sm_diffusion.sampling.loop import SamplerOutput
from sm_diffusion.sampling.noise import StepNoise
from sm_diffusion.sampling.orders import confidence
from sm_diffusion.sampling.orders.confidence import build_measure
from tests.helpers.golden import Golden, assert_close
from tests.helpers.qwen import MASK, golden_dream

pytestmark = pytest.mark.parity

MEASURE_OF = {"entropy": "entropy", "maskgit_plus": "probability", "topk_margin": "margin"}


class OriginNoise(Noise):
    """The reference's only random numbers: one float32 for every masked position of the batch, in order."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def step(self, step: int, masked_BL: Tensor) -> StepNoise:
        move_BL = torch.ones(masked_BL.shape, dtype=torch.float64)
        move_BL[masked_BL] = torch.rand(int(masked_BL.sum()), generator=self.generator).double()
        return StepNoise(move_BL, move_BL, move_BL, move_BL[:, 0])


def policy_of(alg: str, golden: Golden) -> UnmaskPolicy:
    steps, eps = int(golden.meta.get("steps", 8)), float(golden.meta.get("eps", 1e-3))
    if alg == "origin":
        return Origin(num_steps=steps, eps=eps)
    return ConfidenceOrder(measure=build_measure(MEASURE_OF[alg]), pace=Timetable(num_steps=steps, eps=eps))


def generate(sampler: Sampler, prompt_BL: Tensor, mask_BL: Tensor | None = None, seed: int = 3) -> SamplerOutput:
    ids_BL = torch.nn.functional.pad(prompt_BL, (0, 16), value=MASK)
    if mask_BL is not None:
        mask_BL = torch.nn.functional.pad(mask_BL.bool(), (0, 16), value=True)
    return sampler.sample(Canvas(ids_BL, mask_BL), OriginNoise(seed), record=True)


def check_history(out: SamplerOutput, golden: Golden, key: str) -> None:
    history_TBL = golden[f"{key}.history"]
    assert out.trajectory is not None
    for step in range(out.num_steps):
        assert torch.equal(out.trajectory.frames[step + 1].ids_BL, history_TBL[step]), f"after step {step}"
    assert torch.equal(out.ids_BL, golden[f"{key}.sequences"])


def topk_order(score_BL: Tensor, eligible_BL: Tensor, count_B: Tensor, *, tie: float) -> Tensor:
    """Ties between positions fall as torch.topk lets them fall; ours go to the first position."""
    chosen_BL = torch.zeros_like(eligible_BL)
    best_BN = score_BL.masked_fill(~eligible_BL, -torch.inf).float().topk(int(count_B[0])).indices
    return chosen_BL.scatter(1, best_BN, True)


@pytest.mark.parametrize("case", ["entropy", "maskgit_plus", "topk_margin", "origin", "entropy_top_p0.9"])
def test_generation(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    golden = Golden("dream")
    if "top_p" in case:  # a nucleus of one token has entropy 0: several positions tie
        monkeypatch.setattr(confidence, "top_n", topk_order)
    alg, _, top_p = case.partition("_top_p")
    sampling = TokenSampling(temperature=0, top_p=float(top_p or 1), keep_crossing=True)
    predictor = HardMaskPredictor(golden_dream(), mask_id=MASK)
    sampler = Sampler(predictor, policy_of(alg, golden), sampling=sampling, noise_removal=False)
    check_history(generate(sampler, golden["gen.prompt"]), golden, f"gen.{case}")


def test_left_padded_prompts() -> None:
    golden = Golden("dream")
    predictor = HardMaskPredictor(golden_dream(), mask_id=MASK)
    sampler = Sampler(
        predictor, policy_of("entropy", golden), sampling=TokenSampling(temperature=0), noise_removal=False
    )
    check_history(generate(sampler, golden["genpad.prompt"], golden["genpad.attention_mask"]), golden, "genpad")


def soft_predictor(case: dict[str, object]) -> Predictor:
    defaults = {"mixinputs_k": 1, "mixture_temp": 1.0, "transparency_scheduling": "none"}
    soft_mask = TransparencyConfig.parse(defaults | case | {"transparency_scheduling": "none"}, "golden").soft_mask()
    assert soft_mask is not None
    return SoftMaskPredictor(golden_dream(), soft_mask, mask_id=MASK, mixing=mixing.linear)


KEYS = sorted({key.removesuffix(".history") for key in Golden("dream_sm").keys if key.endswith(".history")})


@pytest.mark.parametrize("key", KEYS)
def test_soft_masked_generation(key: str) -> None:
    golden = Golden("dream_sm")
    name, alg = key.rsplit(".", 1)
    case = ast.literal_eval(golden.meta["cases"])[name]
    strength = LinearStrength() if case.get("transparency_scheduling") == "linear" else ConstantStrength()
    sampler = Sampler(
        soft_predictor(case),
        policy_of(alg, golden),
        sampling=TokenSampling(temperature=0),
        strength=strength,
        noise_removal=False,
    )
    out = generate(sampler, golden["prompt"])
    check_history(out, golden, key)
    assert out.trajectory is not None
    for step, weight_BL in enumerate(golden[f"{key}.mask_weight"]):
        frame = out.trajectory.frames[step + 1]
        masked_BL = frame.ids_BL == MASK
        if bool(masked_BL.any()):
            assert frame.blend_ids_BLK is not None
            # That the sampler feeds back what it should. Float32 differences feed one another here: a float64 run whose
            # logits move by 3e-7 of the largest in every step, as rounding moves them, ends 1.7e-4 away in the worst
            # case, and one per cent of omega_s 6e-1. The same weights to 1e-4, in float64: test_dream_parity.py.
            assert_close((1 - frame.lambda_BL)[masked_BL], weight_BL[masked_BL], 1e-3, f"mask weight {step}")


def test_rows_do_not_depend_on_each_other() -> None:
    """Ragged prompts, either padding side, alone and together: the same continuation."""
    golden = Golden("dream")
    soft = soft_predictor(ast.literal_eval(Golden("dream_sm").meta["cases"])["topk3_strong"])
    sampler = Sampler(soft, policy_of("maskgit_plus", golden), sampling=TokenSampling(temperature=0.5, top_p=0.9))
    prompts, seeds = [[5, 9, 21], [7], [40, 41, 42, 43, 44, 45]], [11, 12, 13]
    alone = []
    for prompt, seed in zip(prompts, seeds, strict=True):
        canvas = from_prompts([prompt], new_tokens=9, mask_id=MASK)
        alone += canvas.texts(sampler.sample(canvas, RowNoise([seed], canvas.positions_BL)).ids_BL)
    for side in ("left", "right"):
        canvas = from_prompts(prompts, new_tokens=9, mask_id=MASK, padding_side=side)
        assert canvas.texts(sampler.sample(canvas, RowNoise(seeds, canvas.positions_BL)).ids_BL) == alone
