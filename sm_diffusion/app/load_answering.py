"""Any model that can be asked something: a run's checkpoint, an exported or published folder, an adapter, a hub id."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sm_diffusion.app.build import build_mixing, build_predictor, build_schedule
from sm_diffusion.app.build_data import build_source, tokenizer_spec
from sm_diffusion.app.build_hf import load_hub_tokenizer
from sm_diffusion.app.load import load_weights, run_config
from sm_diffusion.app.trainer import accelerator_of, precision_of
from sm_diffusion.config import schema
from sm_diffusion.data.chat.prompt_codec import PlainCodec, PromptCodec, TemplateCodec
from sm_diffusion.data.stores.base import NoSource
from sm_diffusion.data.tokenizers.build import build_tokenizer
from sm_diffusion.denoisers.adapters import peft
from sm_diffusion.denoisers.adapters.transparency import FILE_NAME as TRANSPARENCY_FILE
from sm_diffusion.denoisers.checkpoints.weights import read_weights
from sm_diffusion.denoisers.pretrained.hf import HFDenoiser
from sm_diffusion.denoisers.pretrained.loading import PINNED, Backbone, fetch, open_backbone
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.schedule import NoiseSchedule
from sm_diffusion.diffusion.soft_mask import SoftMaskBase
from sm_diffusion.files import digest, read_object, sha256_of
from sm_diffusion.types import UserError


@dataclass(frozen=True, kw_only=True)
class AnsweringModel:
    """A network with what turns prompts into ids.

    max_length: tokens it takes, prompt and answer together.     sha256: of the weights.
    source:     where it was loaded from.                        step: of the training; None: unknown.
    schedule, time_conditioning: what a time-conditioned network needs while sampling.
    """

    predictor: Predictor
    codec: PromptCodec
    max_length: int
    sha256: str
    source: str
    step: int | None
    schedule: NoiseSchedule | None = None
    time_conditioning: bool = False


def load_answering(config: schema.EvalConfig) -> AnsweringModel:
    """The model of `checkpoint`, on the CPU. UserError where there is none, or it does not fit its tokenizer."""
    path = Path(config.checkpoint)
    if path.is_file():
        return _of_run(config)
    if (path / "adapter_config.json").is_file():
        return _of_adapter(config, path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(
            f"checkpoint={path}: a folder without config.json or adapter_config.json; give a checkpoint file, an "
            "exported model folder, or an adapter folder (smd convert makes both)"
        )
    return _of_folder(config, str(config.checkpoint))


def _of_run(config: schema.EvalConfig) -> AnsweringModel:
    weights = read_weights(config.checkpoint, weights=config.weights)
    run = run_config(config, weights)
    codec = build_codec(run.data)
    predictor = build_predictor(run, vocab_size=codec.vocab_size, mask_id=codec.mask_id)
    load_weights(predictor, weights)
    return AnsweringModel(
        predictor=predictor.eval(),
        codec=codec,
        max_length=_max_length(predictor, run.data.length),
        sha256=sha256_of(weights.path),
        source=str(config.checkpoint),
        step=weights.step,
        schedule=build_schedule(run.schedule),
        time_conditioning=isinstance(run.model, schema.DiTConfig) and run.model.time_conditioning,
    )


def _of_folder(config: schema.EvalConfig, name: str) -> AnsweringModel:
    backbone = _open(config, name)
    folder, _ = fetch(name, _revision(config, name))
    soft_mask = peft.read_soft_mask(folder) if (folder / TRANSPARENCY_FILE).is_file() else None
    return _pretrained(config, backbone, soft_mask, folder=folder, source=name)


def _of_adapter(config: schema.EvalConfig, folder: Path) -> AnsweringModel:
    """An adapter folder on the base it names, or on that of `model.path`."""
    base = _hf(config).path if config.model is not None else None
    if base is None:
        try:
            base = read_object(folder / "smd_adapter.json")["base"]
        except (UserError, KeyError):
            base = read_object(folder / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        raise UserError(f"checkpoint={folder}: the adapter does not name its base; give model=dream_7b model.path=...")
    backbone = _open(config, base)
    adapter, soft_mask = peft.load(backbone.denoiser, folder, trainable=False)
    merged = backbone._replace(denoiser=peft.merge(adapter))
    base_folder, _ = fetch(base, _revision(config, base))
    return _pretrained(config, merged, soft_mask, folder=base_folder, source=str(folder), adapter=folder)


def _pretrained(
    config: schema.EvalConfig,
    backbone: Backbone,
    soft_mask: SoftMaskBase | None,
    *,
    folder: Path,
    source: str,
    adapter: Path | None = None,
) -> AnsweringModel:
    if config.data is not None:
        codec = build_codec(config.data)
    else:
        codec = TemplateCodec(load_hub_tokenizer(str(folder)), name=str(folder), mask_id=backbone.mask_id)
    if codec.mask_id != backbone.mask_id or codec.vocab_size > backbone.vocab_size:
        raise UserError(
            f"checkpoint={source}: its mask token is {backbone.mask_id} of {backbone.vocab_size}, the tokenizer's "
            f"{codec.mask_id} of {codec.vocab_size}; give the data option it was trained with, data=..."
        )
    predictor: Predictor
    if soft_mask is None:
        predictor = HardMaskPredictor(backbone.denoiser, mask_id=backbone.mask_id)
    else:
        predictor = SoftMaskPredictor(
            backbone.denoiser, soft_mask, mask_id=backbone.mask_id, mixing=build_mixing(config.soft_mask.mixing)
        )
    return AnsweringModel(
        predictor=predictor.eval(),
        codec=codec,
        max_length=_max_length(predictor, 0),
        sha256=_folder_sha256([folder, *([adapter] if adapter else [])]),
        source=source,
        step=None,
    )


def _hf(config: schema.EvalConfig) -> schema.HFConfig:
    if config.model is None:
        return schema.HFConfig(name="given")
    if not isinstance(config.model, schema.HFConfig):
        raise UserError(f"model={config.model.name}: a model folder is a transformers model; leave model out")
    return config.model


def _revision(config: schema.EvalConfig, name: str) -> str | None:
    model = _hf(config)
    return model.revision or PINNED.get(name)


def _open(config: schema.EvalConfig, name: str) -> Backbone:
    accelerator = accelerator_of(config.accelerator)
    low = precision_of(config.precision, accelerator) != "32-true"
    model = _hf(config)
    return open_backbone(
        name,
        revision=_revision(config, name),
        dtype=torch.bfloat16 if low else torch.float32,
        add_mask=model.add_mask,
        shift_logits=model.shift_logits,
    )


def _max_length(predictor: Predictor, trained: int) -> int:
    """Positions a transformers model has; what another network was trained on."""
    denoiser: Any = predictor.denoiser
    return int(denoiser.lm.config.max_position_embeddings) if isinstance(denoiser, HFDenoiser) else trained


def _folder_sha256(folders: list[Path]) -> str:
    """Of the weights and omegas in them, by name and content."""
    files = [sorted([*folder.glob("*.safetensors"), *folder.glob(TRANSPARENCY_FILE)]) for folder in folders]
    return digest(*(f"|{path.name}|{sha256_of(path)}" for path in itertools.chain(*files)))


def build_codec(data: schema.DataConfig) -> PromptCodec:
    """How the models trained on this data read prompts. Only kind=bpe needs the corpus itself."""
    chat = isinstance(data, schema.ChatConfig)
    if chat and data.tokenizer.kind == "hub":
        loaded = load_hub_tokenizer(data.tokenizer.path)
        added = loaded.mask_token_id is None and data.tokenizer.mask == "auto"
        return TemplateCodec(loaded, name=data.tokenizer.path, mask_id=len(loaded) if added else None)
    source = build_source(data) if data.tokenizer.kind == "bpe" else NoSource()
    cache_dir = Path(data.cache_dir).expanduser()
    return PlainCodec(build_tokenizer(tokenizer_spec(data), source=source, cache_dir=cache_dir), chat=chat)
