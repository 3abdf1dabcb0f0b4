"""Fake Dream and LLaDA folders in their published layouts: loaded by name, refused with one line when wrong."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sm_diffusion.denoisers.pretrained import dream, llada
from sm_diffusion.denoisers.pretrained.hf import HFDenoiser
from sm_diffusion.denoisers.pretrained.loading import Backbone, check_tokenizer, fetch, open_backbone
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.readouts.base import Logits
from sm_diffusion.types import UserError
from tests.helpers.qwen import MASK, PAD, VOCAB, tiny_llama, tiny_qwen

DREAM_CONFIG = {
    "architectures": ["DreamModel"],
    "auto_map": {"AutoConfig": "configuration_dream.DreamConfig", "AutoModel": "modeling_dream.DreamModel"},
    "model_type": "Dream",
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": PAD,
    "pad_token_id": PAD,
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "mask_token_id": MASK,
    "max_position_embeddings": 128,
    "max_window_layers": 2,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": VOCAB,
}
LLADA_CONFIG = {
    "model_type": "llada",
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "bias_for_layer_norm": False,
    "block_type": "llama",
    "d_model": 64,
    "embedding_size": VOCAB,
    "eos_token_id": PAD,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "mask_token_id": MASK,
    "max_sequence_length": 128,
    "mlp_hidden_size": 96,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 2,
    "pad_token_id": PAD,
    "rms_norm_eps": 1e-5,
    "rope": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "vocab_size": VOCAB,
    "weight_tying": False,
}
LLADA_NAMES = {
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
}


def llada_name(name: str) -> str:
    """LLaDA's name of a Llama parameter: the test's own table, the other way round."""
    outside = {"model.embed_tokens.weight": "wte", "model.norm.weight": "ln_f", "lm_head.weight": "ff_out"}
    if name in outside:
        return f"model.transformer.{outside[name]}.weight"
    _, _, index, rest = name.split(".", 3)
    return f"model.transformer.blocks.{index}.{LLADA_NAMES[rest.removesuffix('.weight')]}.weight"


def write_folder(folder: Path, config: dict, tensors: dict[str, Tensor], num_shards: int = 3) -> Path:
    """config.json, shards and their index, as the hub has them."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    names, index = sorted(tensors), {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        chosen = {name: tensors[name].contiguous() for name in names[shard::num_shards]}
        save_file(chosen, folder / file, metadata={"format": "pt"})
        index |= dict.fromkeys(chosen, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


@pytest.fixture
def dream_folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "dream", DREAM_CONFIG, tiny_qwen().lm.state_dict())


def logits(denoiser: HFDenoiser, ids_BL: Tensor) -> Tensor:
    with torch.no_grad():
        return denoiser(ids_BL, Logits(), mixing=mixing.linear)


IDS = torch.randint(0, PAD, (2, 9), generator=torch.Generator().manual_seed(1))


def test_dream(dream_folder: Path) -> None:
    backbone = open_backbone(str(dream_folder), dtype=torch.float32)
    assert backbone[1:] == (MASK, VOCAB, str(dream_folder), "")
    assert torch.equal(logits(backbone.denoiser, IDS), logits(tiny_qwen(), IDS))
    assert not backbone.denoiser.training


def test_llada(tmp_path: Path) -> None:
    ours = tiny_llama()
    tensors = {llada_name(name): tensor for name, tensor in ours.lm.state_dict().items()}
    assert "model.transformer.blocks.1.ff_out.weight" in tensors
    folder = write_folder(tmp_path / "llada", LLADA_CONFIG, tensors)
    backbone = open_backbone(str(folder), dtype=torch.float32)
    assert not backbone.denoiser.shift_logits
    assert torch.equal(logits(backbone.denoiser, IDS), logits(ours, IDS))
    tied = {name: tensor for name, tensor in tensors.items() if name != "model.transformer.ff_out.weight"}
    folder = write_folder(tmp_path / "tied", LLADA_CONFIG | {"weight_tying": True}, tied)
    lm = open_backbone(str(folder)).denoiser.lm
    assert lm.lm_head.weight is lm.model.embed_tokens.weight


def test_dtype_is_the_one_asked_for_and_rotary_tables_stay_float32(dream_folder: Path) -> None:
    lm = open_backbone(str(dream_folder)).denoiser.lm
    assert {parameter.dtype for parameter in lm.parameters()} == {torch.bfloat16}
    reference = tiny_qwen().lm
    assert torch.equal(lm.model.rotary_emb.inv_freq, reference.model.rotary_emb.inv_freq)
    for name, parameter in reference.named_parameters():
        assert torch.equal(lm.get_parameter(name), parameter.to(torch.bfloat16)), name


def test_the_files_may_be_replaced_while_the_model_lives(dream_folder: Path) -> None:
    denoiser = open_backbone(str(dream_folder), dtype=torch.float32).denoiser
    before = logits(denoiser, IDS)
    for path in dream_folder.glob("*.safetensors"):
        path.write_bytes(bytes(path.stat().st_size))
    assert torch.equal(logits(denoiser, IDS), before)


def test_adapting_an_autoregressive_model(tmp_path: Path) -> None:
    source = tiny_qwen(tie_word_embeddings=True).lm
    source.save_pretrained(tmp_path / "ar")
    with pytest.raises(UserError, match=r"no mask token.*set add_mask"):
        open_backbone(str(tmp_path / "ar"))
    backbone = open_backbone(str(tmp_path / "ar"), add_mask=True, dtype=torch.float32)
    lm = backbone.denoiser.lm
    assert (backbone.mask_id, backbone.vocab_size) == (VOCAB, VOCAB + 1)
    assert backbone.denoiser.shift_logits
    assert lm.lm_head.weight is lm.model.embed_tokens.weight
    torch.testing.assert_close(lm.model.embed_tokens.weight[VOCAB], source.model.embed_tokens.weight.mean(0))
    spare = open_backbone(str(tmp_path / "ar"), add_mask=True, mask_id=140, shift_logits=False)
    assert (spare.mask_id, spare.vocab_size, spare.denoiser.shift_logits) == (140, VOCAB, False)


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder: Path, change) -> None:
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        save_file(change(tensors), path)


def drop_norms(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = {name: tensor for name, tensor in tensors.items() if "norm" not in name}
    return kept | {"model.extra.weight": torch.ones(1)}


BAD = {
    "vocabulary": (lambda f: edit(f, vocab_size=200), r"vocabulary: lm_head.weight is \[151, 64\].*says \[200, 64\]"),
    "width": (lambda f: edit(f, intermediate_size=64), r"shape: .*mlp.*is \[64, 128\].*and 1 more"),
    "keys": (lambda f: rewrite(f, drop_norms), r"5 missing \(.*norm.weight\); 1 unexpected \(model.extra.weight\)"),
    "type": (lambda f: edit(f, model_type="gpt2"), "model_type=gpt2: choose a model of Dream, llada, qwen2"),
    "setting": (lambda f: edit(f, use_mrope=True), "use_mrope is set"),
    "lacking": (
        lambda f: (f / "config.json").write_text('{"model_type": "Dream", "mask_token_id": 1}'),
        "config.json lacks vocab_size, hidden_size",
    ),
    "json": (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json does not exist"),
    "no mask": (lambda f: edit(f, mask_token_id=None), "has no mask token"),
    "mask": (lambda f: edit(f, mask_token_id=151666), "mask token 151666 lies outside its vocabulary of 151"),
    "shard": (lambda f: next(f.glob("*-00002-*")).unlink(), "lacks model-00002-of-00003.safetensors"),
    "damaged": (lambda f: next(f.glob("*-00002-*")).write_bytes(b"123"), "damaged or incomplete.*download it again"),
    "index": (lambda f: (f / "model.safetensors.index.json").write_text("[]"), "is not an index"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_folders(dream_folder: Path, name: str) -> None:
    spoil, message = BAD[name]
    spoil(dream_folder)
    with pytest.raises(UserError, match=message) as caught:
        open_backbone(str(dream_folder))
    assert "\n" not in str(caught.value)


def test_llada_with_other_blocks_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "llada", LLADA_CONFIG | {"include_qkv_bias": True}, {"x": torch.ones(1)}, 1)
    with pytest.raises(UserError, match="include_qkv_bias=True is not what LLaDA-8B's blocks compute"):
        open_backbone(str(folder))


def test_unreachable_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = r"Dream-v0-Instruct-7B: no such folder, and revision 05334cb.*give its folder"
    with pytest.raises(UserError, match=message) as caught:
        fetch("Dream-org/Dream-v0-Instruct-7B")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="needs a revision: set it to a commit hash"):
        fetch("someone/model")
    with pytest.raises(UserError, match="no such folder"):
        fetch(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="could not be had"):
        fetch("a/b/c", "main")


def test_tokenizer_must_be_the_models_own() -> None:
    backbone = Backbone(tiny_qwen(), MASK, VOCAB, "model", "")
    check_tokenizer(backbone, size=VOCAB - 1, mask_id=MASK)
    with pytest.raises(UserError, match="the tokenizer has no mask token, model needs id 150"):
        check_tokenizer(backbone, size=VOCAB, mask_id=None)
    with pytest.raises(UserError, match="mask token is 3, that of model is 150"):
        check_tokenizer(backbone, size=VOCAB, mask_id=3)
    with pytest.raises(UserError, match="152 ids, model has 151"):
        check_tokenizer(backbone, size=VOCAB + 1, mask_id=MASK)


def test_published_constants() -> None:
    assert (dream.MASK_ID, llada.MASK_ID) == (151666, 126336)
    assert all(len(commit) == 40 for commit in (*dream.PINNED.values(), *llada.PINNED.values()))


def write_tokenizer(folder: Path, **settings) -> None:
    alphabet = [chr(33 + index) for index in range(94)] + [chr(0x100 + index) for index in range(200)]
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)} | {"ab": 294}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\na b\n")
    special = {"295": "<|endoftext|>", "296": "<|mask|>"}
    added = {index: {"content": text, "special": True} for index, text in special.items()}
    config = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": added,
        "eos_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config | settings))


def test_dream_tokenizer_without_remote_code(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks vocab.json, merges.txt, tokenizer_config.json"):
        dream.load_tokenizer(tmp_path)
    write_tokenizer(tmp_path)
    tokenizer = dream.load_tokenizer(tmp_path)
    assert tokenizer("ab<|mask|>")["input_ids"] == [294, 296]
    assert tokenizer.mask_token_id == 296
    write_tokenizer(tmp_path, mask_token=None)
    with pytest.raises(UserError, match="has no mask token: set mask_token"):
        dream.load_tokenizer(tmp_path)
