"""From settings of pretrained backbones, adapters and chat data to objects."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from sm_diffusion.app.build_mix import build_chat_mix
from sm_diffusion.config.schema_peft import (
    PACKINGS,
    ChatConfig,
    ChatFilesConfig,
    ChatMixConfig,
    HFConfig,
    HFShapeConfig,
    PeftConfig,
    PythonChatConfig,
)
from sm_diffusion.data.chat.datamodule import ChatDataModule, ChatRowSettings
from sm_diffusion.data.chat.format import ChatFormat, ChatTemplate, RoleLines
from sm_diffusion.data.chat.python_chat import PythonChat
from sm_diffusion.data.chat.rows import longest_row
from sm_diffusion.data.chat.sources import ChatFiles, ChatSource
from sm_diffusion.data.loader import LoaderSettings
from sm_diffusion.data.tokenizers.build import TokenizerSpec, build_tokenizer
from sm_diffusion.denoisers.adapters import peft
from sm_diffusion.denoisers.adapters.state import save_adapters_only
from sm_diffusion.denoisers.pretrained import dream
from sm_diffusion.denoisers.pretrained.hf import CausalLM, HFDenoiser
from sm_diffusion.denoisers.pretrained.loading import check_tokenizer, fetch, open_backbone
from sm_diffusion.diffusion.contracts import Denoiser
from sm_diffusion.diffusion.predictor import Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.soft_mask import SoftMaskBase
from sm_diffusion.training.strategies.sharding import reshard, whole
from sm_diffusion.types import UserError

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ARCHITECTURES: dict[str, tuple[Any, type[CausalLM]]] = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


def lm_config(shape: HFShapeConfig, vocab_size: int) -> Any:
    """The configuration of transformers with these sizes."""
    config_class, _ = ARCHITECTURES[shape.architecture]
    return config_class(
        vocab_size=vocab_size,
        hidden_size=shape.width,
        intermediate_size=shape.ffn_width,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_key_heads,
        head_dim=shape.head_width or shape.width // shape.num_heads,
        max_position_embeddings=shape.max_length,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=shape.tied,
        bos_token_id=None,
        eos_token_id=None,
        use_cache=False,
    )


def build_hf_denoiser(model: HFConfig, *, vocab_size: int, mask_id: int) -> HFDenoiser:
    """The published weights, or random ones; UserError unless the corpus was encoded by the model's own tokenizer.

    vocab_size, mask_id: the tokenizer's.
    """
    if model.path is None:
        return _random_denoiser(model, vocab_size)
    backbone = open_backbone(
        model.path,
        revision=model.revision,
        dtype=DTYPES[model.dtype],
        add_mask=model.add_mask,
        mask_id=mask_id if model.add_mask else None,
        shift_logits=model.shift_logits,
        checkpoint_blocks=model.activation_checkpointing,
    )
    check_tokenizer(backbone, size=vocab_size, mask_id=mask_id)
    backbone.denoiser.train()
    return backbone.denoiser


def _random_denoiser(model: HFConfig, vocab_size: int) -> HFDenoiser:
    shape = model.shape
    if shape.vocab_size and shape.vocab_size < vocab_size:
        raise UserError(f"model.shape.vocab_size={shape.vocab_size}: the tokenizer has {vocab_size} ids: set it to 0")
    with torch.random.fork_rng():
        torch.manual_seed(model.init_seed)
        lm = ARCHITECTURES[shape.architecture][1](lm_config(shape, shape.vocab_size or vocab_size))
    return HFDenoiser(
        lm.to(DTYPES[model.dtype]),  # type: ignore[arg-type]
        shift_logits=True if model.shift_logits is None else model.shift_logits,
        checkpoint_blocks=model.activation_checkpointing,
        source=f"random {model.name} (init_seed={model.init_seed})",
    )


def adapter_spec(settings: PeftConfig) -> peft.AdapterSpec:
    """Of a kind other than none."""
    match settings.kind:
        case "lora" | "dora":
            return peft.AdapterSpec(
                rank=settings.rank,
                alpha=settings.alpha,
                dropout=settings.dropout,
                use_dora=settings.kind == "dora",
                targets=tuple(settings.targets),
                quantize=settings.quantize,
            )
        case kind:
            raise UserError(f"peft.kind={kind}: choose none, lora or dora")


def with_adapter(denoiser: Denoiser, settings: PeftConfig, *, seed: int) -> Denoiser:
    """The denoiser with fresh adapters, its base frozen; unchanged for kind none."""
    if settings.kind == "none":
        return denoiser
    if not isinstance(denoiser, HFDenoiser):
        raise UserError(f"peft.kind={settings.kind}: adapters need a transformers model: set model=dream_7b")
    return save_adapters_only(peft.attach(denoiser, adapter_spec(settings), seed=seed))


def write_adapter_folder(predictor: Predictor, folder: Path, *, writes: bool = True) -> Path | None:
    """Write the adapter and the omegas of a predictor that has any; None without an adapter, or under ZeRO-3, whose
    weights no rank holds (then `smd convert adapter` makes the folder from the checkpoint).

    writes: whether this process writes. Where parameters are sharded all must call: it gathers.
    """
    denoiser = predictor.denoiser
    if not isinstance(denoiser, HFDenoiser) or denoiser.adapter is None:
        return None
    reshard(predictor)
    named = denoiser.adapter.parameters()
    if any(parameter.numel() == 0 for parameter in named.values()):
        return None
    weights = {name: whole(parameter.detach()).cpu() for name, parameter in named.items()}
    soft_mask = _gathered(predictor.soft_mask) if isinstance(predictor, SoftMaskPredictor) else None
    if not writes:
        return None
    peft.save(denoiser.adapter, folder, soft_mask, weights=weights)
    return folder


def _gathered(soft_mask: SoftMaskBase) -> SoftMaskBase:
    """A copy with whole parameters on the CPU."""
    full = {
        id(parameter): torch.nn.Parameter(whole(parameter.detach()).cpu(), requires_grad=parameter.requires_grad)
        for parameter in soft_mask.parameters()
    }
    return copy.deepcopy(soft_mask, full)  # the memo: what to put in place of each parameter


# --------------------------------------------------------------------------------------------------------- chat data


def build_chat_source(data: ChatConfig) -> ChatSource:
    match data:
        case ChatFilesConfig():
            return ChatFiles(
                paths=data.paths,
                messages_field=data.messages_field,
                validation_fraction=data.validation_fraction,
                validation_paths=data.validation_paths or None,
            )
        case PythonChatConfig():
            return PythonChat(validation_fraction=data.validation_fraction)
        case ChatMixConfig():
            return build_chat_mix(data)
        case _:
            raise UserError(f"data={data.name}: {type(data).__name__} has no source; choose chat_files or python_chat")


def build_chat_tokenizer(data: ChatConfig, source: ChatSource) -> ChatFormat:
    """A hub tokenizer with its chat template, or one of our own with plain "role: content" lines."""
    tokenizer = data.tokenizer
    if tokenizer.kind != "hub":
        spec = TokenizerSpec(kind=tokenizer.kind, vocab_size=tokenizer.vocab_size)
        return RoleLines(build_tokenizer(spec, source=source, cache_dir=Path(data.cache_dir).expanduser()))
    loaded = load_hub_tokenizer(tokenizer.path)
    return ChatTemplate(loaded, name=tokenizer.path, mask=tokenizer.mask, forbidden=data.forbidden_tokens)


def load_hub_tokenizer(name: str) -> Any:
    """Of a folder or a hub id, without remote code: Dream's is a Qwen2 tokenizer under another name."""
    from transformers import AutoTokenizer

    folder, _ = fetch(name)
    try:
        text = (folder / "tokenizer_config.json").read_text(encoding="utf-8")
    except OSError:
        raise UserError(f"data.tokenizer.path={name}: {folder} holds no tokenizer_config.json") from None
    if "DreamTokenizer" in text:
        return dream.load_tokenizer(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"data.tokenizer.path={name}: no tokenizer could be loaded ({reason})") from None


def packed_row_tokens(data: ChatConfig) -> int | None:
    """Tokens of a packed row; None where every sample is a row."""
    match data.packing:
        case "none":
            return None
        case "block_diagonal":
            return data.packed_length or longest_row(data.length)
        case packing:
            raise UserError(f"data.packing={packing}: choose one of {', '.join(PACKINGS)}")


def build_chat_datamodule(data: ChatConfig, *, loader: LoaderSettings) -> ChatDataModule:
    source = build_chat_source(data)
    return ChatDataModule(
        source=source,
        make_tokenizer=functools.partial(build_chat_tokenizer, data, source),
        rows=ChatRowSettings(
            max_tokens=data.length,
            min_response_tokens=data.min_response_tokens,
            pads_are_maskable=data.pads_are_maskable,
            packed_row_tokens=packed_row_tokens(data),
        ),
        loader=loader,
        cache_dir=data.cache_dir,
    )
