"""Fine-tune -> adapter folder -> load -> merge -> export -> open again, on a tiny Dream-shaped model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from sm_diffusion.data.chat.collate import ChatSample, collate
from sm_diffusion.denoisers.adapters import peft, transparency
from sm_diffusion.denoisers.adapters.settings import AdapterSettings
from sm_diffusion.denoisers.pretrained.export import export_folder, push_folder
from sm_diffusion.denoisers.pretrained.hf import HFDenoiser
from sm_diffusion.denoisers.pretrained.loading import open_backbone
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.predictor import SoftMaskPredictor
from sm_diffusion.diffusion.readouts.base import Logits
from sm_diffusion.diffusion.sft import FirstRowTime, SFTObjective
from sm_diffusion.diffusion.soft_mask import FullVocabularySoftMask, SoftMask
from sm_diffusion.types import Draws, UserError
from tests.helpers.qwen import MASK, PAD, tiny_llama, tiny_qwen

IDS = torch.randint(0, PAD, (2, 9), generator=torch.Generator().manual_seed(1))
SAMPLES = [ChatSample(list(range(5, 20)), 6), ChatSample(list(range(30, 42)), 3)]
BATCH = collate(SAMPLES, torch.arange(2), pad_id=PAD, extra=3)


def logits(denoiser: HFDenoiser) -> Tensor:
    with torch.no_grad():
        return denoiser.eval()(IDS, Logits(), mixing=mixing.linear)


def soft_mask() -> SoftMask:
    return SoftMask(top_k=3, omega_s=0.3, omega_a=6.66, omega_b=-0.75)


def fine_tune(adapter: peft.Adapter, head: SoftMask, num_steps: int = 5) -> list[float]:
    predictor = SoftMaskPredictor(adapter.denoiser, head, mask_id=MASK, mixing=mixing.linear).train()
    groups = [
        {"params": list(adapter.parameters().values()), "lr": 1e-2},
        {"params": list(head.parameters()), "lr": 1e-2},
    ]
    optimizer, losses = torch.optim.AdamW(groups, weight_decay=0.0), []
    objective = SFTObjective(times=FirstRowTime(t_min=0.2, t_max=0.8), mask_id=MASK)
    uniform_BL = torch.rand(BATCH.ids_BL.shape, generator=torch.Generator().manual_seed(2))
    draws = Draws(torch.tensor([0.5, 0.1]), uniform_BL, BATCH.rows_B, 2)
    for _ in range(num_steps):
        out = objective(predictor, BATCH, draws, feedback=True)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    return losses


@pytest.mark.parametrize("spec", [peft.DORA, peft.LORA], ids=["dora", "lora"])
def test_the_whole_cycle(tmp_path: Path, spec: AdapterSettings) -> None:
    base, denoiser, head = logits(tiny_qwen()), tiny_qwen(), soft_mask()
    frozen = {name: tensor.clone() for name, tensor in denoiser.state_dict().items()}
    adapter = peft.attach(denoiser, spec, seed=0)
    torch.testing.assert_close(logits(denoiser), base, atol=1e-5, rtol=0)
    losses = fine_tune(adapter, head)
    assert losses[-1] < losses[0]
    tuned = logits(denoiser)
    assert (tuned - base).abs().max() > 1e-2
    for name, tensor in denoiser.state_dict().items():
        if "lora_" not in name:
            assert torch.equal(tensor, frozen[name.replace(".base_layer", "")]), name

    peft.save(adapter, tmp_path / "adapter", head)
    again, head_again = peft.load(tiny_qwen(), tmp_path / "adapter", trainable=False)
    assert torch.equal(logits(again.denoiser), tuned)
    assert isinstance(head_again, SoftMask)
    assert head_again.top_k == 3
    for name, tensor in head.state_dict().items():
        assert torch.equal(head_again.state_dict()[name], tensor), name

    merged = peft.merge(again)
    torch.testing.assert_close(logits(merged), tuned, atol=1e-4, rtol=0)
    assert set(merged.state_dict()) == set(frozen)
    export_folder(merged, tmp_path / "full", mask_id=MASK, max_shard_size="100KB")
    assert len(list((tmp_path / "full").glob("*.safetensors"))) > 1
    backbone = open_backbone(str(tmp_path / "full"), dtype=torch.float32)
    assert (backbone.mask_id, backbone.denoiser.shift_logits) == (MASK, True)
    assert torch.equal(logits(backbone.denoiser), logits(merged))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "full", dtype=torch.float32)
    assert torch.equal(logits(HFDenoiser(theirs, shift_logits=True)), logits(merged))


def test_export_keeps_llada_unshifted(tmp_path: Path) -> None:
    denoiser = tiny_llama()
    export_folder(denoiser, tmp_path / "full", mask_id=MASK)
    backbone = open_backbone(str(tmp_path / "full"), dtype=torch.float32)
    assert not backbone.denoiser.shift_logits
    assert torch.equal(logits(backbone.denoiser), logits(denoiser))


def test_published_targets_and_only_adapters_train() -> None:
    adapter = peft.attach(tiny_qwen(), peft.DORA, seed=0)
    parts = {"lora_A.default.weight", "lora_B.default.weight", "lora_magnitude_vector.default.weight"}
    projections = ("q_proj", "k_proj", "v_proj", "o_proj")
    wanted = {
        f"lm.model.layers.{layer}.self_attn.{projection}.{part}"
        for layer in range(2)
        for projection in projections
        for part in parts
    }
    assert set(adapter.parameters()) == wanted
    assert adapter.parameters()["lm.model.layers.0.self_attn.q_proj.lora_A.default.weight"].shape == (16, 64)


def test_adapters_are_float32_on_a_bfloat16_base_and_seeded() -> None:
    adapters = [peft.attach(tiny_qwen().to(torch.bfloat16), peft.DORA, seed=seed).parameters() for seed in (3, 3, 4)]
    assert {tensor.dtype for tensor in adapters[0].values()} == {torch.float32}
    name = "lm.model.layers.0.self_attn.q_proj.lora_A.default.weight"
    assert torch.equal(adapters[0][name], adapters[1][name])
    assert not torch.equal(adapters[0][name], adapters[2][name])


def test_checkpointed_blocks_train_adapters_the_same() -> None:
    losses = []
    for checkpointed in (False, True):
        denoiser = tiny_qwen()
        denoiser.checkpoint_blocks = checkpointed
        losses.append(fine_tune(peft.attach(denoiser, peft.DORA, seed=0), soft_mask(), 3))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    peft.save(peft.attach(tiny_qwen(), peft.DORA, seed=0), tmp_path / "adapter", soft_mask())
    return tmp_path / "adapter"


def test_the_base_may_be_loaded_in_another_dtype(saved: Path) -> None:
    assert peft.load(tiny_qwen().to(torch.bfloat16), saved, trainable=True)[0].parameters()


def test_adapter_of_another_base(saved: Path) -> None:
    with pytest.raises(UserError, match="trained on other weights"):
        peft.load(tiny_qwen(seed=1), saved, trainable=False)
    (saved / peft.BASE_FILE).unlink()
    with pytest.raises(UserError, match=r"adapter of another base: .*self_attn.k_proj is \[16, 64\].*such\)"):
        peft.load(tiny_qwen(num_key_value_heads=1), saved, trainable=False)
    with pytest.raises(UserError, match=r"adapter of another base: nothing for model.layers.2"):
        peft.load(tiny_qwen(num_hidden_layers=3), saved, trainable=False)
    with pytest.raises(UserError, match=r"adapter of another base: no layer model.layers.1"):
        peft.load(tiny_qwen(num_hidden_layers=1), saved, trainable=False)


def test_an_adapter_folder_of_the_authors(saved: Path) -> None:
    """Theirs names a module of its own as saved, has no fingerprint and no raw omegas."""
    (saved / peft.BASE_FILE).unlink()
    (saved / peft.OMEGA_FILE).unlink()
    config = json.loads((saved / "adapter_config.json").read_text())
    config |= {"modules_to_save": ["transparency"], "base_model_name_or_path": "user/Dream-v0-Instruct-7B-SM"}
    (saved / "adapter_config.json").write_text(json.dumps(config))
    tensors = load_file(saved / "adapter_model.safetensors")
    tensors["base_model.model.transparency.raw_scale"] = torch.zeros(())
    save_file(tensors, saved / "adapter_model.safetensors")
    with pytest.warns(UserWarning, match="made for user/Dream-v0-Instruct-7B-SM"):
        adapter, head = peft.load(tiny_qwen(), saved, trainable=False)
    assert head is not None
    assert head.omega_a.item() == pytest.approx(6.66)
    assert not adapter.parameters()


def test_qlora(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="QLoRA needs the extra [scale]")
    base, denoiser, head = logits(tiny_qwen()), tiny_qwen(), soft_mask()
    adapter = peft.attach(denoiser, peft.QLORA, seed=0)
    assert denoiser.lm.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    assert 0 < (logits(denoiser) - base).norm() / base.norm() < 0.5
    losses = fine_tune(adapter, head)
    assert losses[-1] < losses[0]
    peft.save(adapter, tmp_path / "adapter", head)
    again, _ = peft.load(tiny_qwen(), tmp_path / "adapter", trainable=False, quantize=True)
    assert torch.equal(logits(again.denoiser), logits(denoiser))
    with pytest.raises(UserError, match="do not merge into 4-bit weights"):
        peft.merge(adapter)
    peft.merge(peft.load(tiny_qwen(), tmp_path / "adapter", trainable=False)[0])


def test_quantising_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match="needs bitsandbytes: pip install"):
        peft.attach(tiny_qwen(), peft.QLORA, seed=0)


def spoil(path: Path, text: str) -> None:
    path.write_text(text)


BAD = {
    "no adapter": (lambda f: (f / "adapter_config.json").unlink(), "is no adapter folder"),
    "broken adapter": (lambda f: spoil(f / "adapter_model.safetensors", "x"), "cannot be read as an adapter"),
    "no tensors": (lambda f: (f / "adapter_model.safetensors").unlink(), "cannot be read as an adapter"),
    "no omegas": (lambda f: (f / transparency.FILE_NAME).unlink(), "transparency_config.json does not exist"),
    "broken omegas": (lambda f: spoil(f / transparency.FILE_NAME, "{"), "not JSON"),
    "other omegas": (
        lambda f: transparency.write(transparency.TransparencyConfig(transparency_alg="mixinputs_with_temp"), f),
        "does not fit transparency_config.json",
    ),
    "broken base": (lambda f: spoil(f / peft.BASE_FILE, "[]"), "smd_adapter.json is malformed"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_adapter_folders(saved: Path, name: str) -> None:
    BAD[name][0](saved)
    with pytest.raises(UserError, match=BAD[name][1]):
        peft.load(tiny_qwen(), saved, trainable=False)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no layer is called query: choose from down_proj"):
        peft.attach(tiny_qwen(), AdapterSettings(kind="dora", targets=("query",)), seed=0)
    denoiser = tiny_qwen()
    peft.attach(denoiser, peft.LORA, seed=0)
    with pytest.raises(UserError, match="merge them before"):
        export_folder(denoiser, tmp_path / "out", mask_id=MASK)
    (tmp_path / "note").touch()
    with pytest.raises(UserError, match="is not empty"):
        export_folder(tiny_qwen(), tmp_path, mask_id=MASK)
    monkeypatch.setenv("HF_ENDPOINT", "http://localhost:1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="could not be uploaded"):
        push_folder(tmp_path, "user/model")


def test_a_full_vocabulary_soft_mask_is_saved_too(tmp_path: Path) -> None:
    head = FullVocabularySoftMask(temperature=0.7, omega_s=0.8, omega_a=2.0, omega_b=-2.5)
    peft.save(peft.attach(tiny_qwen(), peft.LORA, seed=0), tmp_path, head)
    again = peft.read_soft_mask(tmp_path)
    assert isinstance(again, FullVocabularySoftMask)
    assert torch.equal(again.raw_temperature, head.raw_temperature)
    peft.save(peft.attach(tiny_qwen(), peft.LORA, seed=0), tmp_path, None)
    assert peft.read_soft_mask(tmp_path) is None
