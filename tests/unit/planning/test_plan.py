"""`smd plan`: every number against the real thing."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sm_diffusion.app.compose import compose_and_validate
from sm_diffusion.cli import main as cli
from sm_diffusion.data.settings import TokenizerSettings
from sm_diffusion.data.tokenizers.sizes import vocabulary
from sm_diffusion.denoisers.dit.model import DiT, DiTShape
from sm_diffusion.denoisers.dit.settings import DiTSettings
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.contracts import Head
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.diffusion.readouts.scratch import Scratch
from sm_diffusion.planning import arithmetic, plan
from sm_diffusion.planning import memory as plan_memory
from sm_diffusion.types import UserError

TINY = DiTShape(vocab_size=40, width=32, num_blocks=2, num_heads=2, cond_width=16)


@pytest.mark.parametrize("name", ["dit_tiny", "dit_small_cpu", "dit_169m", "dit_424m", "dit_1b"])
def test_parameters_equal_the_module(name: str) -> None:
    config = compose_and_validate("train", [f"model={name}"])
    made = plan.make_plan(config, vocab=50258, on_gpu=True, num_devices=1)
    assert isinstance(config.model, DiTSettings)
    with torch.device("meta"):
        denoiser = config.model.build(vocab_size=50258, mask_id=50257)
    sizes = {key: parameter.numel() for key, parameter in denoiser.named_parameters()}
    assert made.parameters.total == sum(sizes.values())
    assert made.parameters.embedding == sizes["vocab_embed.embedding"]
    assert made.parameters.head == sizes["output_layer.linear.weight"]
    if name == "dit_169m":
        assert made.parameters.total == 169_627_218


def test_state_bytes_equal_a_real_optimizer() -> None:
    module = DiT(TINY, parameterization=Subs(39))
    optimizer = torch.optim.AdamW(module.parameters())
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [
        value for state in optimizer.state.values() for key, value in state.items() if key in ("exp_avg", "exp_avg_sq")
    ]
    parts = plan.state_bytes(plan.dit_parameters(TINY), ema=True, mixed=False)
    assert parts["AdamW moments (2 x float32)"] == _bytes(moments)
    assert parts["weights (float32)"] == parts["EMA (float32)"] == _bytes(module.parameters())
    assert parts["gradients (float32)"] == _bytes(parameter.grad for parameter in module.parameters())
    assert "bf16 copies of the matrices" not in parts
    assert "EMA (float32)" not in plan.state_bytes(plan.dit_parameters(TINY), ema=False, mixed=False)


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("recompute", [False, True])
def test_activations_are_what_autograd_keeps(mixed: bool, dropout: bool, recompute: bool) -> None:
    """Counts the storages that the blocks save for the backward pass, each once, weights aside."""
    shape = DiTShape(vocab_size=64, width=128, num_blocks=3, num_heads=2, cond_width=16)
    module = DiT(shape, parameterization=Subs(63), dropout=dropout, checkpoint_blocks=recompute)
    ids_BL = torch.randint(0, 63, (3, 37))
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # 3 x 37 divides no size of the weights, their bf16 copies, the rotary tables or the conditioning.
        if tensor.numel() % ids_BL.numel() == 0:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed),
    ):
        module(ids_BL, lambda hidden_BLD, head: hidden_BLD, mixing=mixing.linear)
    measured = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    mask_bytes = (2 if mixed else 4) if dropout else 0
    estimate = plan.ActivationShape(
        num_blocks=3, width=128, num_positions=ids_BL.numel(), mixed=mixed, mask_bytes=mask_bytes, recompute=recompute
    )
    one = ids_BL.numel() * plan_memory.block_activation_bytes(128, mixed=mixed, mask_bytes=mask_bytes)
    expected = plan.activation_bytes(estimate) - (one if recompute else 0)  # the one block lives in the backward pass
    final_norm = 2 * 4 * 128 * ids_BL.numel()
    assert measured - final_norm == pytest.approx(expected, rel=0.03)


def test_flops_of_a_training_step() -> None:
    flops = arithmetic.training_flops(100.0, 40.0, masked_share=0.5, p_sm=0.8)
    assert flops.forward == 120
    assert flops.extra == pytest.approx(96)
    assert flops.training == pytest.approx(3 * 120 + 96)
    assert flops.extra_share == pytest.approx(96 / 456)
    assert arithmetic.training_flops(100, 40, masked_share=0.5, p_sm=0, recompute_blocks=True).training == 460


def test_chunk_is_the_buffer_that_is_used() -> None:
    head = Head(torch.zeros(1000, 4), None, Subs(999))
    for num_positions in (100_000, 50):
        scratch = Scratch(head, torch.zeros(num_positions, 4))
        assert plan.logits_chunk_bytes(1000, num_positions, "cpu") == scratch.buffer_CV.numel() * 4


def test_days() -> None:
    one_day = 312e12 * 0.5 * 86_400
    assert arithmetic.days(one_day * 8, peak_tflops=312, mfu=0.5, num_devices=8) == pytest.approx(1.0)


def test_whole_run() -> None:
    sizes = ["data.global_batch_sequences=8", "data.length=16", "trainer.max_steps=10"]
    overrides = ["model=dit_tiny", "variant=mdlm", "data=python_text", *sizes]
    config = compose_and_validate("train", overrides)
    made = plan.make_plan(config, vocab=None, on_gpu=False, num_devices=2)
    assert made.vocab_size == 28
    assert made.tokens == 10 * 8 * 16
    assert made.flops.extra == 0
    assert made.activations.num_positions == 4 * 16
    assert made.total_flops == pytest.approx(1280 * made.flops.training)
    capped = compose_and_validate("train", [*overrides, f"trainer.max_flops={made.total_flops / 2}"])
    assert plan.make_plan(capped, vocab=None, on_gpu=False, num_devices=2).steps == 5


def test_vocabularies() -> None:
    assert vocabulary(TokenizerSettings(kind="byte")) == 258
    assert vocabulary(TokenizerSettings(kind="bpe", vocab_size=5000)) == 5000
    assert vocabulary(TokenizerSettings(kind="hub", path="gpt2")) == 50258


def test_unknown_hub_tokenizer_asks_for_vocab(tmp_path: Any) -> None:
    with pytest.raises(UserError, match="say it with --vocab"):
        vocabulary(TokenizerSettings(kind="hub", path=str(tmp_path / "nowhere")))


@pytest.mark.parametrize(
    ("value", "text"), [(0.5, "12 hours"), (2.0, "2 days"), (1 / 1440, "1 minutes"), (1e-5, "0.864 seconds")]
)
def test_duration(value: float, text: str) -> None:
    assert plan.duration(value) == text


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["model=dit_169m", "--vocab", "50258", "data.length=1024", "--accelerator", "A100", "--mfu", "0.5"]
    assert cli.main(["plan", *arguments]) == 0
    out = capsys.readouterr().out
    assert "169,627,218 at vocabulary 50,258" in out
    assert "of it, extra pass" in out
    assert "A100" in out
    assert max(map(len, out.splitlines())) <= 110


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--mfu", "0"], "--mfu 0.0: give a share in (0, 1]"),
        (["--vocab", "1"], "--vocab 1: give at least 2"),
        (["--devices", "0"], "--devices 0: give at least 1"),
        (["model.width=33"], "model.width=33"),
        (["model.widht=33"], "widht"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
