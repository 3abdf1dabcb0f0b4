"""`smd plan` of pretrained backbones: every number against the real module, on the meta device where it is large."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from sm_diffusion.app.compose import compose_and_validate
from sm_diffusion.cli import main as cli
from sm_diffusion.denoisers.adapters.peft import attach
from sm_diffusion.denoisers.adapters.settings import AdapterSettings
from sm_diffusion.denoisers.pretrained.hf import HFDenoiser
from sm_diffusion.denoisers.pretrained.loading import LAYOUTS, build_empty
from sm_diffusion.denoisers.pretrained.settings import HFSettings, HFShape
from sm_diffusion.diffusion import mixing
from sm_diffusion.planning import pretrained as plan_hf
from sm_diffusion.types import UserError
from tests.helpers.chats import write_base

PUBLISHED = {"dream_7b": 7_615_616_512, "dream_coder_7b": 7_615_616_512, "llada_8b": 8_015_581_184}
CHAT = ["objective=sft", "data=dream_chat_files", "data.paths=[chat.jsonl]", "variant.p_sm=0.5"]


@pytest.mark.parametrize("name", [*PUBLISHED, "qwen2_tiny"])
def test_parameters_equal_the_module(name: str) -> None:
    model = compose_and_validate("train", [f"model={name}"]).model
    numbers = plan_hf.numbers_of(model, 258)
    lm = build_empty(LAYOUTS[model.shape.architecture], model.shape.config(numbers.vocab_size))
    assert numbers.parameters == sum(parameter.numel() for parameter in lm.parameters())
    assert numbers.matrix == lm.lm_head.weight.numel()
    assert numbers.parameters == PUBLISHED.get(name, numbers.parameters)


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_any_shape(architecture: str, tied: bool) -> None:
    shape = HFShape(architecture=architecture, vocab_size=99, tied=tied, head_width=24)
    lm = build_empty(LAYOUTS[architecture], shape.config(99))
    numbers = plan_hf.numbers_of(HFSettings(name="x", shape=shape), 0)
    assert numbers.parameters == sum(parameter.numel() for parameter in lm.parameters())


@pytest.mark.parametrize("kind", ["lora", "dora"])
@pytest.mark.parametrize("targets", [["q_proj", "k_proj", "v_proj", "o_proj"], ["v_proj", "down_proj"]])
def test_adapters_equal_the_module(kind: str, targets: list[str]) -> None:
    shape = HFShape(vocab_size=40)
    lm = build_empty(LAYOUTS["qwen2"], shape.config(40)).to_empty(device="cpu")
    dora = kind == "dora"
    get_peft_model(lm, LoraConfig(r=5, target_modules=targets, use_dora=dora))
    trained = sum(parameter.numel() for parameter in lm.parameters() if parameter.requires_grad)
    settings = AdapterSettings(kind=kind, rank=5, targets=targets)
    assert plan_hf.numbers_of(HFSettings(name="x", shape=shape), 0).adapter_parameters(settings) == trained


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_layer_keeps_about_what_is_estimated(kind: str) -> None:
    """The storages that one layer saves for the backward pass, weights aside, under bf16 autocast as on a GPU."""
    shape = HFShape(vocab_size=50, width=128, ffn_width=600, num_layers=1, num_heads=4, num_key_heads=1)
    lm = LAYOUTS["qwen2"].model_class(shape.config(50)).to(torch.bfloat16)
    denoiser = HFDenoiser(lm, shift_logits=True)
    attach(denoiser, AdapterSettings(kind=kind), seed=0)
    ids_BL = torch.randint(0, 49, (3, 37))
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.numel() % ids_BL.numel() == 0 and tensor.numel() > 64 * ids_BL.numel():
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        denoiser(ids_BL, lambda hidden_BLD, head: hidden_BLD, mixing=mixing.linear)
    numbers = plan_hf.numbers_of(HFSettings(name="x", shape=shape), 0)
    estimate = ids_BL.numel() * numbers.layer_activation_bytes(AdapterSettings(kind=kind), 2)
    print(f"{kind}: kept {sum(kept.values()):,}, estimated {estimate:,}")
    assert 0.5 * estimate < sum(kept.values()) < 1.3 * estimate


def test_dream_fits_40_gb_with_the_published_settings(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["model=dream_7b", "peft=dora_r16", "strategy=single", "optim=dream", "trainer=dream_sft", *CHAT]
    assert cli.main(["plan", *options]) == 0
    out = capsys.readouterr().out
    assert "7,615,616,512 x 2 (bfloat16)" in out
    assert "10,321,920 x 4 x (weight, gradient, AdamW's 2 moments)" in out
    assert "2,104 positions x 28 layers x 3584 x 2" in out
    assert "fits in 40 GB" in out
    assert max(map(len, out.splitlines())) <= 110
    made: Any = plan_hf.make_plan(compose_and_validate("train", options), vocab=None, on_gpu=True, num_devices=1)
    assert 15e9 < made.total_bytes < 25e9


def test_the_whole_network_in_float32_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", "model=dream_7b", "model.dtype=float32", *CHAT]) == 0
    assert "does not fit in 40 GB" in capsys.readouterr().out


def test_sizes_of_a_folder_and_of_nothing(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    base = write_base(tmp_path / "base")
    assert cli.main(["plan", "model=qwen2_tiny", f"model.path={base}", "peft=qlora_r16"]) == 0
    assert "at vocabulary 258" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"its sizes are not known here; give model.shape"):
        plan_hf.numbers_of(HFSettings(name="x", path="some/model", revision="abc"), 0)
