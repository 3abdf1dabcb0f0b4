"""The tiny Dream of the authors' code: logits, hidden states, padded prompts, soft-masked inputs."""

from __future__ import annotations

import ast

import pytest
import torch
from torch import Tensor

from sm_diffusion.denoisers.adapters.transparency import TransparencyConfig
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.predictor import SoftMaskPredictor
from sm_diffusion.diffusion.readouts.base import Logits, positions_of
from sm_diffusion.diffusion.soft_mask import SoftMaskBase
from tests.helpers.golden import Golden, assert_close
from tests.helpers.qwen import MASK, golden_dream

pytestmark = pytest.mark.parity


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("dream")


def logits(denoiser, ids_BL: Tensor, attention_mask_BL: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return denoiser(ids_BL, Logits(), mixing=mixing.linear, attention_mask_BL=attention_mask_BL)


def test_forward(golden: Golden) -> None:
    ids_BL, reference = golden["fwd.ids"], golden["fwd.logits"]
    assert_close(logits(golden_dream(shift_logits=False), ids_BL), reference, 1e-4)
    shifted = torch.cat([reference[:, :1], reference[:, :-1]], 1)
    assert_close(logits(golden_dream(), ids_BL), shifted, 1e-4)


def test_hidden_states(golden: Golden) -> None:
    denoiser = golden_dream()
    embeds_BLD = denoiser.input_embedding()(golden["fwd.ids"])
    assert_close(embeds_BLD, golden["fwd.hidden0"], 1e-6)
    seen = []
    hook = denoiser.shard_units()[0].register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        hidden_BLD = denoiser.hidden_states(embeds_BLD)
    hook.remove()
    assert_close(seen[0], golden["fwd.hidden1"], 1e-4)
    assert_close(hidden_BLD, golden["fwd.hidden2"], 1e-4)


@pytest.mark.parametrize("case", ["gen.entropy", "genpad"])
def test_every_token_the_reference_revealed_is_our_argmax(golden: Golden, case: str) -> None:
    """Drives the steps from the reference's history: greedy tokens, with and without left padding."""
    prompt_BL = golden["gen.prompt" if case == "gen.entropy" else "genpad.prompt"]
    new_tokens = int(golden.meta["max_new_tokens"])
    mask_BL = None
    if case == "genpad":
        answer_BL = torch.ones(len(prompt_BL), new_tokens, dtype=torch.bool)
        mask_BL = torch.cat([golden["genpad.attention_mask"].bool(), answer_BL], 1)
    ids_BL = torch.nn.functional.pad(prompt_BL, (0, new_tokens), value=MASK)
    denoiser, revealed = golden_dream(), 0
    for after_BL in golden[f"{case}.history"]:
        changed_BL = ids_BL != after_BL
        best_BL = logits(denoiser, ids_BL, mask_BL).argmax(-1)
        assert torch.equal(best_BL[changed_BL], after_BL[changed_BL])
        revealed += int(changed_BL.sum())
        ids_BL = after_BL
    assert revealed == 2 * new_tokens


def soft_mask_of(case: dict[str, object]) -> SoftMaskBase:
    defaults = {"mixinputs_k": 1, "mixture_temp": 1.0, "transparency_scheduling": "none"}
    soft_mask = TransparencyConfig.parse(defaults | case, "golden").soft_mask()
    assert soft_mask is not None
    return soft_mask


def input_embeds(predictor: SoftMaskPredictor, ids_BL: Tensor, memory: object) -> Tensor:
    with torch.no_grad():
        mixture = predictor.soft_mask(ids_BL, memory, MASK)
        return mixing.linear(predictor.denoiser.input_embedding().weight, mixture)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", ["topk1", "topk3", "topk3_strong", "temp0.7_strong"])
def test_soft_masked_inputs(case: str) -> None:
    """Every step's input vectors, fed back from the prediction one step before on the reference's own ids."""
    golden = Golden("dream_sm")
    soft_mask = soft_mask_of(ast.literal_eval(golden.meta["cases"])[case])
    predictor = SoftMaskPredictor(golden_dream(), soft_mask, mask_id=MASK, mixing=mixing.linear)
    history = golden[f"{case}.entropy.history"]
    references = golden[f"{case}.entropy.inputs_embeds_steps1_7"]
    new_tokens = int(golden.meta["max_new_tokens"])
    ids_BL, memory = torch.nn.functional.pad(golden["prompt"], (0, new_tokens), value=MASK), None
    for step, reference in enumerate(references):
        after_BL = history[step]
        with torch.no_grad():
            # What was predicted on this step's input, at the positions that the next input still masks.
            memory = predictor(ids_BL, memory, predictor.remember_at(positions_of(after_BL == MASK)))
        assert_close(input_embeds(predictor, after_BL, memory), reference, 1e-4, f"step {step + 1}")
        ids_BL = after_BL


def test_the_reference_linear_schedule_is_the_share_of_masks_left() -> None:
    """Its omega_s is scaled by (masks left) / (new tokens), which is not the diffusion time of the step."""
    golden, case = Golden("dream_sm"), "topk3_strong_linear"
    settings = ast.literal_eval(golden.meta["cases"])[case]
    assert settings["transparency_scheduling"] == "linear"
    predictor = SoftMaskPredictor(golden_dream(), soft_mask_of(settings), mask_id=MASK, mixing=mixing.linear)
    new_tokens = int(golden.meta["max_new_tokens"])
    ids_BL, memory, strength = torch.nn.functional.pad(golden["prompt"], (0, new_tokens), value=MASK), None, 1.0
    for after_BL, weight_BL in zip(
        golden[f"{case}.entropy.history"], golden[f"{case}.entropy.mask_weight"], strict=False
    ):
        masked_BL = after_BL == MASK
        with torch.no_grad():
            memory = predictor(ids_BL, memory, predictor.remember_at(positions_of(masked_BL)), strength=strength)
            strength = int(masked_BL[0].sum()) / new_tokens
            ours_BL = predictor.soft_mask(after_BL, memory, MASK, strength).weights_BLK[..., 0]
        assert_close(ours_BL[masked_BL], weight_BL[masked_BL], 1e-4)
        ids_BL = after_BL
