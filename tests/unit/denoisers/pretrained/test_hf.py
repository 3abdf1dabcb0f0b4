"""Full attention, padding, batching, soft inputs and the adaptation of autoregressive models, on tiny networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from sm_diffusion.denoisers.pretrained.hf import HFDenoiser, add_mask_token, position_ids, shift_hidden
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.readouts.base import Logits, NegLogLikelihood, PlainNegLogLikelihood
from sm_diffusion.types import DenseMixture, TokenMixture, UserError
from tests.helpers.qwen import MASK, PAD, VOCAB, WIDTH, tiny_config, tiny_llama, tiny_qwen, visible


def tiny_qwen3() -> HFDenoiser:
    config = Qwen3Config(**tiny_config().to_dict() | {"head_dim": 16, "model_type": "qwen3"})
    lm = Qwen3ForCausalLM(config)
    visible(lm)
    return HFDenoiser(lm, shift_logits=True).eval()


BUILDERS = {"qwen2": tiny_qwen, "qwen3": tiny_qwen3, "llama": tiny_llama}


def logits(denoiser: HFDenoiser, inputs, mask_BL: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        return denoiser(inputs, Logits(), mixing=mixing.linear, attention_mask_BL=mask_BL)


@pytest.mark.parametrize("name", BUILDERS)
def test_the_first_position_sees_the_last_token(name: str) -> None:
    denoiser = BUILDERS[name]()
    ids_BL = torch.randint(0, PAD, (2, 9))
    other_BL = ids_BL.clone()
    other_BL[:, -1] = (other_BL[:, -1] + 1) % PAD
    assert ((logits(denoiser, ids_BL) - logits(denoiser, other_BL))[:, 0].abs().amax(-1) > 1e-3).all()


def test_equals_transformers_own_forward_under_an_all_true_mask() -> None:
    denoiser = tiny_qwen(shift_logits=False)
    ids_BL = torch.randint(0, PAD, (2, 9))
    everything = torch.ones(2, 1, 9, 9, dtype=torch.bool)
    with torch.no_grad():
        reference = denoiser.lm(input_ids=ids_BL, attention_mask={"full_attention": everything}, use_cache=False).logits
    torch.testing.assert_close(logits(denoiser, ids_BL), reference, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", BUILDERS)
def test_a_row_does_not_depend_on_its_batch_padding_or_neighbours(name: str) -> None:
    denoiser = BUILDERS[name]()
    rows = [torch.randint(0, PAD, (length,)) for length in (5, 11, 8)]
    alone = [logits(denoiser, row_L[None])[0] for row_L in rows]
    for left in (True, False):
        for length, junk in ((11, PAD), (16, 7)):
            ids_BL = torch.full((3, length), junk)
            mask_BL = torch.zeros(3, length, dtype=torch.bool)
            for row, row_L in enumerate(rows):
                place = slice(length - len(row_L), length) if left else slice(0, len(row_L))
                ids_BL[row, place], mask_BL[row, place] = row_L, True
            together = logits(denoiser, ids_BL, mask_BL)
            for row in range(3):
                torch.testing.assert_close(together[row][mask_BL[row]], alone[row], atol=2e-5, rtol=0)


def test_positions_and_shift_ignore_padding() -> None:
    mask_BL = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    assert position_ids(mask_BL)[mask_BL].tolist() == [0, 1, 2, 0, 1, 2]
    hidden_BLD = torch.arange(10.0).view(2, 5, 1)
    shifted = shift_hidden(hidden_BLD, mask_BL)[..., 0]
    assert shifted[mask_BL].tolist() == [2, 2, 3, 5, 5, 6]
    assert shift_hidden(hidden_BLD, None)[..., 0].tolist() == [[0, 0, 1, 2, 3], [5, 5, 6, 7, 8]]


def test_soft_inputs_reduce_to_ids_and_mix_linearly() -> None:
    denoiser = tiny_qwen()
    ids_BL = torch.randint(0, PAD, (2, 7))
    own_BLK = torch.stack([ids_BL, torch.zeros_like(ids_BL)], -1)
    one_hot = TokenMixture(own_BLK, torch.tensor([1.0, 0.0]).expand(2, 7, 2))
    torch.testing.assert_close(logits(denoiser, one_hot), logits(denoiser, ids_BL), atol=1e-5, rtol=0)
    # A dense mixture that is sharply one token equals the sparse mixture with that token.
    sharp_NV = torch.full((1, VOCAB), -1e4).index_fill(1, torch.tensor([33]), 1e4)
    dense = DenseMixture(ids_BL, torch.tensor([3]), torch.tensor([0.4]), sharp_NV)
    weights = torch.tensor([1.0, 0.0]).expand(2, 7, 2).clone()
    weights[0, 3] = torch.tensor([0.6, 0.4])
    sparse = TokenMixture(torch.stack([ids_BL, torch.full_like(ids_BL, 33)], -1), weights)
    torch.testing.assert_close(logits(denoiser, dense), logits(denoiser, sparse), atol=1e-5, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_checkpointing_and_chunked_head_give_the_same_gradients(tied: bool) -> None:
    ids_BL = torch.randint(0, PAD, (2, 7))
    positions_N, targets_N = torch.tensor([0, 5, 9]), torch.tensor([3, 4, 5])
    gradients = []
    for checkpointed, readout in ((False, PlainNegLogLikelihood), (True, NegLogLikelihood)):
        denoiser = tiny_qwen(tie_word_embeddings=tied)
        denoiser.checkpoint_blocks = checkpointed
        assert (denoiser.lm.lm_head.weight is denoiser.input_embedding().weight) == tied
        denoiser(ids_BL, readout(positions_N, targets_N, torch.ones(3)), mixing=mixing.linear).total.backward()
        gradients.append({name: parameter.grad for name, parameter in denoiser.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-5, rtol=1e-4, msg=name)


def test_shard_units_and_flops() -> None:
    denoiser = tiny_qwen()
    assert list(denoiser.shard_units()) == list(denoiser.lm.model.layers)
    in_layers = sum(p.numel() for name, p in denoiser.lm.model.layers.named_parameters() if name.endswith("weight"))
    in_layers -= sum(p.numel() for name, p in denoiser.lm.model.layers.named_parameters() if "norm" in name)
    assert denoiser.flops_per_token(10) == (2 * in_layers + 2 * 4 * 10 * WIDTH, 2 * WIDTH * VOCAB)


def test_bfloat16_stays_close() -> None:
    ids_BL = torch.randint(0, PAD, (2, 9))
    exact = logits(tiny_qwen(), ids_BL)
    rounded = logits(tiny_qwen().to(torch.bfloat16), ids_BL)
    assert rounded.dtype == torch.float32
    assert ((rounded - exact).norm() / exact.norm()) < 0.05


@pytest.mark.parametrize("mask_id", [VOCAB + 2, MASK])
@pytest.mark.parametrize("tied", [True, False])
def test_adding_a_mask_token(mask_id: int, tied: bool) -> None:
    lm = Qwen2ForCausalLM(tiny_config(tie_word_embeddings=tied))
    before = lm.model.embed_tokens.weight.detach().clone()
    add_mask_token(lm, mask_id)
    weight = lm.model.embed_tokens.weight
    assert len(weight) == lm.config.vocab_size == max(VOCAB, mask_id + 1)
    assert torch.equal(weight[:MASK], before[:MASK])
    torch.testing.assert_close(weight[mask_id], weight[:mask_id].mean(0))
    assert (lm.lm_head.weight is weight) == tied
    assert logits(HFDenoiser(lm, shift_logits=True).eval(), torch.tensor([[1, mask_id]])).isfinite().all()


def test_sequences_beyond_the_models_positions_are_refused() -> None:
    with pytest.raises(UserError, match="a sequence of 129 tokens is too long: the model takes 128"):
        logits(tiny_qwen(), torch.zeros(1, 129, dtype=torch.int64))


def test_other_architectures_are_refused() -> None:
    gpt2 = GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=10))
    with pytest.raises(UserError, match="GPT2LMHeadModel cannot be a denoiser"):
        HFDenoiser(gpt2, shift_logits=True)
