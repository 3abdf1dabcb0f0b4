"""Fine-tuning of the tiny Dream: collated fields, losses and gradients against the authors' code."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sm_diffusion.data.chat.collate import ChatSample, collate
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.readouts.base import Logits
from sm_diffusion.diffusion.sft import FirstRowTime, SFTObjective
from sm_diffusion.diffusion.soft_mask import FullVocabularySoftMask, SoftMask
from sm_diffusion.types import Batch, Draws
from tests.helpers.golden import Golden, assert_close
from tests.helpers.qwen import MASK, PAD, golden_dream

pytestmark = pytest.mark.parity

OBJECTIVE = SFTObjective(times=FirstRowTime(t_min=0.2, t_max=0.8), mask_id=MASK)
HEAD = {"omega_s": 0.6, "omega_a": 3.0, "omega_b": -1.5}
RAW = {
    "raw_scale": "raw_omega_s",
    "raw_centre_neg": "raw_omega_b",
    "raw_steep": "raw_omega_a",
    "raw_temperature": "raw_temperature",
}


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("dream_sft")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference_batch(golden: Golden, name: str) -> tuple[Batch, Draws]:
    """The reference restarts its generator with the same seed for the padding, for t and for the mask."""
    seed = int(golden[f"{name}.seed"][0])
    samples = [ChatSample(golden[f"raw_ids{row}"].tolist(), int(golden["prompt_lengths"][row])) for row in range(3)]
    extra = int(torch.randint(50, (1,), generator=seeded(seed)))
    batch = collate(samples, torch.arange(3), pad_id=PAD, extra=extra)
    time = torch.rand((), generator=seeded(seed))
    if name.endswith("t0.35"):
        time = (golden[f"{name}.t"].mean() - 0.2) / 0.6
    draws = Draws(time.expand(3), torch.rand(batch.ids_BL.shape, generator=seeded(seed)), batch.rows_B, 3)
    return batch, draws


@pytest.mark.parametrize("name", ["seed1231", "seed5", "seed9_t0.35"])
def test_collated_fields(golden: Golden, name: str) -> None:
    batch, draws = reference_batch(golden, name)
    t_B, masked_BL = OBJECTIVE.noise(batch, draws)
    assert torch.equal(masked_BL, golden[f"{name}.mask_idx"])
    assert torch.equal(batch.ids_BL.masked_fill(masked_BL, MASK), golden[f"{name}.input_ids"])
    assert torch.equal(batch.ids_BL.masked_fill(~masked_BL, -100), golden[f"{name}.labels"])
    assert_close(1 / t_B, golden[f"{name}.dsigma"].expand(3), 1e-6)
    assert_close(OBJECTIVE.mask_probability(t_B), golden[f"{name}.p_mask"].expand(3), 1e-6)


def check(golden: Golden, predictor: Predictor, prefix: str, *, feedback: bool) -> None:
    batch, draws = reference_batch(golden, "seed1231")
    out = OBJECTIVE(predictor, batch, draws, feedback=feedback)
    assert out.num_passes == (2 if feedback else 1)
    assert_close(out.loss, golden[f"{prefix}.loss"], 1e-4, "loss")
    assert_close(out.nll_sum / out.num_tokens, golden[f"{prefix}.loss"], 1e-4, "logged loss")
    out.loss.backward()
    references = golden.group(f"{prefix}.grad.")
    assert references
    omegas = []
    for name, reference in references.items():
        ours = name.replace("transparency.", "soft_mask.")
        for theirs, mine in RAW.items():
            ours = ours.replace(theirs, mine)
        gradient = predictor.get_parameter(ours if ours.startswith("soft_mask") else f"denoiser.lm.{ours}").grad
        assert gradient is not None, name
        if prefix == "plain" and "embed_tokens" in name:
            # The reference looks ids up with padding_idx, which drops the gradient of the row that padding reads,
            # though it trains on padding; its soft-masked pass (a matrix product) has that gradient, and so do we.
            assert not reference[PAD].any()
            assert gradient[PAD].any()
            gradient = gradient.index_fill(0, torch.tensor([PAD]), 0.0)
        if ours.startswith("soft_mask"):
            omegas.append((gradient.view(1), reference.view(1)))
            continue
        assert_close(gradient.reshape(reference.shape), reference, 1e-4, name)
    if omegas:
        # One vector: a small component is a difference of sums many times its size, which float32 does not determine.
        ours_O, reference_O = (torch.cat(parts) for parts in zip(*omegas, strict=True))
        assert_close(ours_O, reference_O, 1e-4, "omegas")


def test_plain(golden: Golden) -> None:
    check(golden, HardMaskPredictor(golden_dream(), mask_id=MASK), "plain", feedback=False)


@pytest.mark.parametrize("top_k", [1, 3])
def test_top_k(golden: Golden, top_k: int) -> None:
    predictor = SoftMaskPredictor(golden_dream(), SoftMask(top_k=top_k, **HEAD), mask_id=MASK, mixing=mixing.linear)
    check(golden, predictor, f"sm_mixinputs_with_topk_k{top_k}", feedback=True)


def test_temperature(golden: Golden) -> None:
    soft_mask = FullVocabularySoftMask(temperature=1.0, **HEAD)
    predictor = SoftMaskPredictor(golden_dream(), soft_mask, mask_id=MASK, mixing=mixing.linear)
    check(golden, predictor, "sm_temp", feedback=True)


def unshifted(golden: Golden, prefix: str, top_k: int | None) -> tuple[Tensor, Tensor]:
    """Our logits at l + 1 and the reference's at l: the last pass of the loss on the seed1231 batch."""
    batch, draws = reference_batch(golden, "seed1231")
    _, masked_BL = OBJECTIVE.noise(batch, draws)
    ids_t_BL = batch.ids_BL.masked_fill(masked_BL, MASK)
    denoiser = golden_dream()
    predictor: Predictor = HardMaskPredictor(denoiser, mask_id=MASK)
    if top_k is not None:
        predictor = SoftMaskPredictor(denoiser, SoftMask(top_k=top_k, **HEAD), mask_id=MASK, mixing=mixing.linear)
    memory = predictor.bootstrap(ids_t_BL, masked_BL.flatten().nonzero().squeeze(1), feedback=top_k is not None)
    with torch.no_grad():
        logits_BLV = predictor(ids_t_BL, memory, Logits())
    return logits_BLV[:, 1:], golden[f"{prefix}.logits_unshifted"][:, :-1]


@pytest.mark.parametrize(("prefix", "top_k"), [("plain", None), ("sm_mixinputs_with_topk_k3", 3)])
def test_logits(golden: Golden, prefix: str, top_k: int | None) -> None:
    assert_close(*unshifted(golden, prefix, top_k), 1e-4)
