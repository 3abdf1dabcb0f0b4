"""Cross-checks of pretrained backbones, adapters and chat data; nothing is loaded or downloaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sm_diffusion.config.schema_peft import PACKINGS, ChatConfig, ChatFilesConfig, HFConfig, HFShapeConfig, PeftConfig
from sm_diffusion.data.chat.rows import longest_row
from sm_diffusion.diffusion.sft import SFTSettings
from sm_diffusion.types import UserError

ARCHITECTURES = ("qwen2", "qwen3", "llama")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def hf_problems(config: Any) -> Iterator[str]:
    """One line for every problem. config: a TrainConfig."""
    model = config.model
    if isinstance(model, HFConfig):
        yield from _model(model)
    yield from _peft(config.peft, model)
    if isinstance(config.data, ChatConfig):
        yield from _chat(config.data)
        if config.data.packing != "none" and not isinstance(model, HFConfig):
            yield (
                f"data.packing={config.data.packing}: model={model.name} takes no packed rows; "
                "set data.packing=none, or a backbone of transformers such as model=qwen2_tiny"
            )
    objective = config.objective
    if objective.times == "first_row" and not isinstance(objective, SFTSettings):
        yield f"objective.times=first_row: only fine-tuning has one time a batch; set objective={objective.name}"


def check_packages(config: Any) -> None:
    """UserError where this machine lacks an optional package; before a 7B base is opened, and not for `smd plan`."""
    settings = config.peft
    if settings.kind != "none" and importlib.util.find_spec("peft") is None:
        raise UserError(f"peft.kind={settings.kind}: not installed; pip install 'sm-diffusion[peft]', or set peft=none")
    if settings.quantize and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "peft.quantize=true: bitsandbytes is not installed; pip install 'sm-diffusion[scale]', or set peft=lora_r16"
        )


def _model(model: HFConfig) -> Iterator[str]:
    if model.attention not in ("auto", "sdpa"):
        yield f"model.attention={model.attention}: a backbone of transformers runs sdpa; set model.attention=auto"
    if model.dtype not in ("bfloat16", "float32"):
        yield f"model.dtype={model.dtype}: unknown; choose one of bfloat16, float32"
    if model.path is None:
        yield from _shape(model.shape)
        if model.add_mask:
            yield "model.add_mask=true: random weights need no mask added; set model.path or model.add_mask=false"
        return
    if Path(model.path).is_dir():
        return
    if Path(model.path).is_absolute() or model.path.startswith((".", "~")):
        yield f"model.path={model.path}: there is no such folder"
        return
    from sm_diffusion.denoisers.pretrained.loading import PINNED  # imports transformers

    if model.revision is None and model.path not in PINNED:
        yield (
            f"model.path={model.path}: neither a folder nor a pinned hub id; "
            "set model.revision to a commit hash of the repository"
        )


def _shape(shape: HFShapeConfig) -> Iterator[str]:
    if shape.architecture not in ARCHITECTURES:
        yield f"model.shape.architecture={shape.architecture}: unknown; choose one of {', '.join(ARCHITECTURES)}"
    sizes = ("width", "ffn_width", "num_layers", "num_heads", "num_key_heads", "max_length")
    wrong = [name for name in sizes if vars(shape)[name] < 1]
    for name in wrong:
        yield f"model.shape.{name}={vars(shape)[name]}: must be positive"
    if wrong:
        return
    if shape.num_heads % shape.num_key_heads:
        yield f"model.shape.num_key_heads={shape.num_key_heads}: must divide model.shape.num_heads={shape.num_heads}"
    if not shape.head_width and shape.width % (2 * shape.num_heads):
        yield f"model.shape.width={shape.width}: must be a multiple of 2 * num_heads = {2 * shape.num_heads}"


def _peft(settings: PeftConfig, model: Any) -> Iterator[str]:
    if settings.kind not in ("none", "lora", "dora"):
        yield f"peft.kind={settings.kind}: unknown; choose one of none, lora, dora"
    if settings.kind == "none":
        if settings.quantize:
            yield "peft.quantize=true: a 4-bit base cannot be trained itself; set peft=qlora_r16"
        return
    if not isinstance(model, HFConfig):
        yield f"peft.kind={settings.kind}: {model.name} has no adapters; set peft=none, or model=dream_7b"
    for name in ("rank", "alpha"):
        if vars(settings)[name] < 1:
            yield f"peft.{name}={vars(settings)[name]}: must be >= 1; published: 16"
    if not 0 <= settings.dropout < 1:
        yield f"peft.dropout={settings.dropout}: must lie in [0, 1)"
    unknown = [target for target in settings.targets if target not in PROJECTIONS]
    if unknown or not settings.targets:
        yield f"peft.targets=[{', '.join(settings.targets)}]: choose from {', '.join(PROJECTIONS)}"


def _chat(data: ChatConfig) -> Iterator[str]:
    if isinstance(data, ChatFilesConfig) and not data.paths:
        yield "data.paths=[]: no files given; set data.paths=[file.jsonl,...]"
    if data.min_response_tokens < 1:
        yield f"data.min_response_tokens={data.min_response_tokens}: must be >= 1; published: 5"
    if not 0 < data.validation_fraction < 1:
        yield f"data.validation_fraction={data.validation_fraction}: must lie between 0 and 1, such as 0.05"
    yield from _packing(data)
    if data.tokenizer.kind == "hub" and not data.tokenizer.path:
        yield "data.tokenizer.path: missing; set it to the folder or hub id of the model"


def _packing(data: ChatConfig) -> Iterator[str]:
    if data.packing not in PACKINGS:
        yield f"data.packing={data.packing}: unknown; choose one of {', '.join(PACKINGS)}"
    elif data.packing == "none":
        if data.packed_length is not None:
            yield f"data.packed_length={data.packed_length}: no rows are packed; set data.packing=block_diagonal"
    elif data.packed_length is not None:
        least = longest_row(data.length) if data.pads_are_maskable else data.length
        if data.packed_length < least:
            yield f"data.packed_length={data.packed_length}: one sample may take {least} tokens; set at least that"
