"""The tiny Dream of the authors' code: logits, hidden states, padded prompts, soft-masked inputs."""

from __future__ import annotations

import ast

import pytest
import torch
from torch import Tensor

from sm_diffusion.denoisers.adapters.transparency import TransparencyConfig
from sm_diffusion.denoisers.pretrained.hf import HFDenoiser, shift_hidden
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.contracts import Head
from sm_diffusion.diffusion.parameterization import Unconstrained
from sm_diffusion.diffusion.readouts.base import Logits, positions_of
from sm_diffusion.diffusion.soft_mask import SoftMask, SoftMaskBase, remember
from sm_diffusion.types import LogitsMemory, TokenMixture
from tests.helpers.golden import Golden, assert_close, relative_error
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


def next_inputs(
    denoiser: HFDenoiser, soft_mask: SoftMaskBase, embeds_BLD: Tensor, after_BL: Tensor, strength: float = 1.0
) -> tuple[Tensor, Tensor]:
    """One step of feedback: from a forward's input vectors to those of the next, and its masks' weights (N,).

    float64 models do without the readouts, which keep float32: their logits are taken whole.
    """
    lm, positions_N = denoiser.lm, positions_of(after_BL == MASK)
    weight_VD = lm.lm_head.weight
    with torch.no_grad():
        hidden_BLD = shift_hidden(denoiser.hidden_states(embeds_BLD.to(weight_VD.dtype)), None)
        if weight_VD.dtype == torch.float32:
            memory = soft_mask.remember_at(positions_N)(hidden_BLD, Head(weight_VD, None, Unconstrained()))
        else:
            logits_BLV = hidden_BLD @ weight_VD.T
            if isinstance(soft_mask, SoftMask):
                memory = remember(logits_BLV, soft_mask.top_k)
            else:
                memory = LogitsMemory(positions_N, logits_BLV.flatten(0, 1)[positions_N])
        mixture = soft_mask(after_BL, memory, MASK, strength)
        weights_N = (
            mixture.weights_BLK[..., 0].flatten()[positions_N]
            if isinstance(mixture, TokenMixture)
            else 1 - mixture.lambda_N
        )
        return mixing.linear(denoiser.input_embedding().weight, mixture), weights_N  # type: ignore[arg-type]


def start(golden: Golden) -> Tensor:
    """The first input: the prompt and a mask for every new token."""
    return torch.nn.functional.pad(golden["prompt"], (0, int(golden.meta["max_new_tokens"])), value=MASK)


# Of one step, relative to the largest component, wherever it runs. A logit has some 20 roundings of 2^-24 behind it
# (9 products, norms and additions a layer), which add up as noise does: sqrt(20) 2^-24 = 2.7e-7 of the largest
# logit (below 18), d = 5e-6. Moving every logit by d moves the entropy by under 1.5 d, lambda by omega_s omega_a / 4
# = 0.4 of that in the strong cases, and the blend by d / T at most: 7e-6 for ours, and as much for the reference.
ONE_STEP = 2e-5


def inputs_errors(case: str, settings: dict[str, object]) -> list[float]:
    """Of every step's input vectors and mask weights, each step begun from the reference's own input vectors."""
    golden = Golden("dream_sm")
    denoiser, soft_mask = golden_dream(), soft_mask_of(settings)
    embeds_BLD, errors = denoiser.input_embedding()(start(golden)), []
    references = golden[f"{case}.entropy.inputs_embeds_steps1_7"]
    for step, reference in enumerate(references):
        after_BL = golden[f"{case}.entropy.history"][step]
        inputs_BLD, weights_N = next_inputs(denoiser, soft_mask, embeds_BLD, after_BL)
        reference_N = golden[f"{case}.entropy.mask_weight"][step][after_BL == MASK]
        errors += [relative_error(inputs_BLD, reference), relative_error(weights_N, reference_N)]
        embeds_BLD = reference
    assert len(errors) == 2 * 7
    return errors


def settings_of(case: str) -> dict[str, object]:
    found: dict[str, object] = ast.literal_eval(Golden("dream_sm").meta["cases"])[case]
    return found


@pytest.mark.parametrize("case", ["topk1", "topk3", "topk3_strong", "temp0.7_strong"])
def test_soft_masked_inputs(case: str) -> None:
    """Every step's input vectors and mask weights. No step hands its rounding on to the next: with these strong
    omegas a difference grows by half in every step, and where seven end depends on the processor."""
    assert max(inputs_errors(case, settings_of(case))) <= ONE_STEP


@pytest.mark.parametrize(
    "name", ["transparency_scale", "transparency_centre", "transparency_steepness", "mixture_temp"]
)
def test_one_percent_of_an_omega_shows(name: str) -> None:
    case = "temp0.7_strong"
    settings = settings_of(case)
    settings[name] = 1.01 * float(settings[name])  # type: ignore[arg-type]
    errors = inputs_errors(case, settings)
    assert min(errors[:2]) > 10 * ONE_STEP


KEYS = sorted({key.removesuffix(".history") for key in Golden("dream_sm").keys if key.endswith(".history")})


@pytest.mark.parametrize("key", KEYS)
def test_mask_weights_of_seven_steps_in_a_row(key: str) -> None:
    """All orders, in float64: what is left is the reference's own rounding, 3.5e-5 at most, the same number anywhere.

    Its linear schedule scales omega_s by (masks left) / (new tokens), which is not the diffusion time of the step.
    """
    golden = Golden("dream_sm")
    settings = settings_of(key.rsplit(".", 1)[0])
    linear = settings.get("transparency_scheduling", "none") == "linear"
    denoiser = golden_dream().double()
    soft_mask = soft_mask_of(settings | {"transparency_scheduling": "none"}).double()
    ids_BL = start(golden)
    embeds_BLD, new_tokens, seen = denoiser.input_embedding()(ids_BL), int(golden.meta["max_new_tokens"]), 0
    for after_BL, weight_BL in zip(golden[f"{key}.history"], golden[f"{key}.mask_weight"], strict=False):
        masked_BL = after_BL == MASK
        if not bool(masked_BL.any()):
            break
        strength = int(masked_BL[0].sum()) / new_tokens if linear else 1.0
        embeds_BLD, weights_N = next_inputs(denoiser, soft_mask, embeds_BLD, after_BL, strength)
        assert_close(weights_N, weight_BL[masked_BL], 1e-4, f"step {seen}")
        seen += 1
    assert seen >= 6
