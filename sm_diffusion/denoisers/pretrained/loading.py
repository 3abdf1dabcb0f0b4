"""Opening published 7B checkpoints: a folder or a hub id, by key name, without remote code, with one copy in memory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from sm_diffusion.denoisers.pretrained import dream, llada
from sm_diffusion.denoisers.pretrained.hf import CausalLM, CheckpointLayout, HFDenoiser, add_mask_token
from sm_diffusion.files import read_object
from sm_diffusion.types import UserError


def _native(model_class: type[CausalLM], config_class: Any) -> CheckpointLayout:
    def configure(config: Mapping[str, Any]) -> Any:
        return config_class.from_dict({**config, "use_cache": False})

    return CheckpointLayout(model_class=model_class, configure=configure, rename=lambda name: name, shift_logits=True)


# By the model_type of config.json.
LAYOUTS = {
    "Dream": dream.LAYOUT,
    "llada": llada.LAYOUT,
    "qwen2": _native(Qwen2ForCausalLM, Qwen2Config),
    "qwen3": _native(Qwen3ForCausalLM, Qwen3Config),
    "llama": _native(LlamaForCausalLM, LlamaConfig),
}
PINNED = {**dream.PINNED, **llada.PINNED}
_DOWNLOAD = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
SHIFT_KEY = "smd_shift_logits"
_SHOWN = 5
_NO_WEIGHTS = ("soft_mask.safetensors",)  # the omegas, beside a merged model or an adapter


class Backbone(NamedTuple):
    """An opened checkpoint. revision: the hub commit, "" for a folder of one's own."""

    denoiser: HFDenoiser
    mask_id: int
    vocab_size: int
    source: str
    revision: str


def fetch(name: str, revision: str | None = None) -> tuple[Path, str]:
    """(folder, hub commit or "") of a folder, or of a hub id at a pinned revision.

    revision: commit hash, tag or branch of the hub repository. None: the commit in PINNED; other ids need one.
    """
    if Path(name).is_dir():
        return Path(name), ""
    if Path(name).is_absolute() or name.startswith((".", "~")):
        raise UserError(f"{name}: there is no such folder")
    pinned = revision or PINNED.get(name)
    if pinned is None:
        raise UserError(
            f"{name} is not a folder, and as a hub id it needs a revision: set it to a commit hash of the repository"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    try:
        folder = Path(snapshot_download(name, revision=pinned, allow_patterns=_DOWNLOAD))
    except (OSError, ValueError, HTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{name}: no such folder, and revision {pinned} could not be had from the Hugging Face hub ({reason}): "
            f"download the repository on a machine with internet and give its folder instead"
        ) from None
    return folder, folder.name


def read_config(folder: Path) -> dict[str, Any]:
    """The decoded config.json."""
    path = folder / "config.json"
    if not path.exists():
        raise UserError(f"{path} does not exist: {folder} is no model folder")
    return read_object(path)


def shard_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, as its index lists them."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        files = [path for path in sorted(folder.glob("*.safetensors")) if path.name not in _NO_WEIGHTS]
        if not files:
            raise UserError(f"{folder} holds no *.safetensors file: only that format is read")
        return files
    try:
        names = sorted(set(read_object(index)["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index} is not an index of safetensors files: download it again") from None
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {_few(missing)} listed in {index.name}: download them")
    return [folder / name for name in names]


def build_empty(layout: CheckpointLayout, config: Any) -> CausalLM:
    """The model with its parameters on the meta device (no memory) and its rotary tables real."""
    with torch.device("meta"):
        lm = layout.model_class(config)
    # Its frequencies are no checkpoint tensor: they are computed when the module is made.
    lm.model.rotary_emb = type(lm.model.rotary_emb)(config=config)
    return lm


def load_weights(lm: CausalLM, files: list[Path], layout: CheckpointLayout, *, dtype: torch.dtype, device: str) -> None:
    """Fill a model on the meta device, one shard at a time, each tensor straight in its dtype and on its device.

    Nothing is loaded before every name and shape of every file has been checked. UserError lists what is missing,
    unexpected or of another shape.
    """
    _check(lm, _shapes(files), layout)
    tied = lm.config.tie_word_embeddings
    for path in files:
        with safe_open(path, "pt", device=device) as shard:
            tensors = {
                # A copy: the file may be replaced while the model lives.
                layout.rename(key): shard.get_tensor(key).to(dtype, copy=device == "cpu")
                for key in shard.keys()  # noqa: SIM118 - a safe_open is no mapping
                if not (tied and layout.rename(key) == "lm_head.weight")
            }
        lm.load_state_dict(tensors, strict=False, assign=True)
    if tied:
        lm.tie_weights()
    lm.model.rotary_emb.to(device)
    empty = [name for name, parameter in lm.named_parameters() if parameter.is_meta]
    assert not empty, empty


def _shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for path in files:
        try:
            with safe_open(path, "pt") as shard:
                shapes |= {key: tuple(shard.get_slice(key).get_shape()) for key in shard.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise UserError(f"{path} is damaged or incomplete ({error}): download it again") from None
    return shapes


def _check(lm: CausalLM, found: Mapping[str, tuple[int, ...]], layout: CheckpointLayout) -> None:
    wanted = {name: tuple(parameter.shape) for name, parameter in lm.named_parameters()}
    renamed = {layout.rename(key): key for key in found}
    tied = {"lm_head.weight"} if lm.config.tie_word_embeddings else set()
    problems = []
    missing = [name for name in wanted if name not in renamed]
    unexpected = [key for name, key in renamed.items() if name not in wanted and name not in tied]
    if missing:
        problems.append(f"{len(missing)} missing ({_few(missing)})")
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected ({_few(unexpected)})")
    for name, key in renamed.items():
        if name in wanted and found[key] != wanted[name]:
            what = "vocabulary" if name in ("model.embed_tokens.weight", "lm_head.weight") else "shape"
            problems.append(f"{what}: {key} is {list(found[key])}, config.json says {list(wanted[name])}")
    if problems:
        raise UserError(f"the checkpoint does not fit its config.json: {_few(problems, '; ')}")


def _few(items: list[str], separator: str = ", ") -> str:
    more = f"{separator}and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return separator.join(items[:_SHOWN]) + more


def open_backbone(
    name: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
    device: str = "cpu",
    add_mask: bool = False,
    mask_id: int | None = None,
    shift_logits: bool | None = None,
    checkpoint_blocks: bool = False,
) -> Backbone:
    """Open Dream, LLaDA, or any Qwen2, Qwen3 or Llama causal LM as a masked-diffusion denoiser.

    name:         folder, or hub id. revision: see `fetch`.
    dtype:        of every parameter in memory, whatever the files hold.
    add_mask:     adapt an autoregressive model: give it a mask token (`add_mask_token`).
    mask_id:      the mask token. None: the checkpoint's own; with add_mask a new row after its last.
    shift_logits: None: as the checkpoint was trained (Dream and autoregressive models: yes; LLaDA: no).
    """
    folder, commit = fetch(name, revision)
    config = read_config(folder)
    model_type = str(config.get("model_type"))
    layout = LAYOUTS.get(model_type)
    if layout is None:
        raise UserError(f"{folder}/config.json: model_type={model_type}: choose a model of {', '.join(LAYOUTS)}")
    own = config.get("mask_token_id")
    if own is None and not add_mask:
        raise UserError(
            f"{name} has no mask token (model_type {model_type}): set add_mask to adapt an autoregressive model"
        )
    if own is not None and mask_id is not None and mask_id != own:
        raise UserError(f"mask_id={mask_id}: {name} was trained with mask token {own}: use that")
    try:
        lm_config = layout.configure(config)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    lm = build_empty(layout, lm_config)
    load_weights(lm, shard_files(folder), layout, dtype=dtype, device=device)
    if own is None:
        own = lm_config.vocab_size if mask_id is None else mask_id
        add_mask_token(lm, own)
    if not 0 <= own < lm.config.vocab_size:
        raise UserError(f"{name}: mask token {own} lies outside its vocabulary of {lm.config.vocab_size}")
    if shift_logits is None:
        shift_logits = bool(config.get(SHIFT_KEY, layout.shift_logits))
    denoiser = HFDenoiser(lm, shift_logits=shift_logits, checkpoint_blocks=checkpoint_blocks, source=name)
    return Backbone(denoiser.eval(), int(own), lm.config.vocab_size, name, commit)


def check_tokenizer(backbone: Backbone, *, size: int, mask_id: int | None) -> None:
    """UserError unless a tokenizer of `size` ids, with this mask token, is the backbone's.

    size may be smaller than the backbone's vocabulary (checkpoints pad their matrices), never larger.
    """
    if mask_id is None:
        raise UserError(
            f"the tokenizer has no mask token, {backbone.source} needs id {backbone.mask_id}: "
            f"use the model's own tokenizer, or set mask_token in its tokenizer_config.json"
        )
    if mask_id != backbone.mask_id:
        raise UserError(f"the tokenizer's mask token is {mask_id}, that of {backbone.source} is {backbone.mask_id}")
    if size > backbone.vocab_size:
        raise UserError(f"the tokenizer has {size} ids, {backbone.source} has {backbone.vocab_size}: they do not match")
