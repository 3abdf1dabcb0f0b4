"""Models that are folders: exported or published causal LMs, and adapters on top of one."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from sm_diffusion.app.build_hf import DTYPES
from sm_diffusion.app.build_tokenizer import Spoken, open_folder_tokenizer, open_hub, read_model_card
from sm_diffusion.app.load import LoadedModel
from sm_diffusion.config import schema
from sm_diffusion.denoisers.adapters import peft, transparency
from sm_diffusion.denoisers.checkpoints.weights import Weights
from sm_diffusion.denoisers.pretrained.loading import (
    PINNED,
    Backbone,
    check_tokenizer,
    fetch,
    open_backbone,
    read_config,
)
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.soft_mask import SoftMaskBase
from sm_diffusion.files import read_object
from sm_diffusion.types import UserError

# Dream's and LLaDA's own fine-tuning lengths. Their max_position_embeddings are far beyond what they were trained on.
DEFAULT_LENGTH = 2048
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer_config.json")


class _Place(NamedTuple):
    """folder: what was asked for. base: where the weights are. revision: of a hub id."""

    folder: Path
    base: str
    revision: str | None
    is_adapter: bool


def load_folder(config: schema.EvalConfig) -> LoadedModel:
    """config.checkpoint names the folder or hub id; config.model replaces dtype, base, revision, mask and shift."""
    model = config.model or schema.HFConfig(name="folder", dtype="")
    if not isinstance(model, schema.HFConfig):
        raise UserError(f"model={model.name}: {config.checkpoint} is the folder of a causal LM: leave model out")
    place = _locate(config.checkpoint, model)
    base_folder, _ = fetch(place.base, place.revision)
    backbone = _open(place, base_folder, model)
    soft_mask: SoftMaskBase | None = None
    if place.is_adapter:
        _, soft_mask = peft.load(backbone.denoiser, place.folder, trainable=False)
    elif (place.folder / transparency.FILE_NAME).is_file():
        soft_mask = peft.read_soft_mask(place.folder)
    spoken, length = _tokenizer(place, base_folder, backbone)
    size = min(spoken.tokenizer.vocab_size, backbone.vocab_size + 1)
    check_tokenizer(backbone, size=size, mask_id=spoken.tokenizer.mask_id)
    variant = schema.MDLMVariantConfig() if soft_mask is None else schema.SoftMaskedVariantConfig()
    data = config.data or schema.DataConfig(name="none", length=length)
    run = schema.TrainConfig(variant=variant, soft_mask=config.soft_mask, model=model, data=data)
    return LoadedModel(
        predictor=_predictor(backbone, soft_mask),
        tokenizer=spoken.tokenizer,
        length=min(length, backbone.denoiser.lm.config.max_position_embeddings),
        run=run,
        weights=Weights(place.folder, {}, {}, None, 0),
        chat=spoken.chat,
    )


def _predictor(backbone: Backbone, soft_mask: SoftMaskBase | None) -> Predictor:
    if soft_mask is None:
        return HardMaskPredictor(backbone.denoiser, mask_id=backbone.mask_id)
    weight = next(backbone.denoiser.parameters())
    soft_mask.to(weight.device)
    return SoftMaskPredictor(backbone.denoiser, soft_mask, mask_id=backbone.mask_id, mixing=mixing.linear)


def _locate(name: str, model: schema.HFConfig) -> _Place:
    """Where things are; UserError for what is no folder and no hub id."""
    hub, _, revision = name.partition("@")
    if not Path(name).is_dir():
        if hub not in PINNED and not revision:
            raise UserError(
                f"{name}: no such file or folder; give a checkpoint, a model or adapter folder, or a hub id with its "
                "revision (owner/name@commit)"
            )
        return _Place(fetch(hub, revision or None)[0], hub, revision or None, is_adapter=False)
    folder = Path(name)
    if (folder / "adapter_config.json").is_file():
        base = model.path or _base_of(folder)
        if base.startswith("random "):
            raise UserError(f"{name}: its base is {base}, which no file holds: load the run's checkpoint instead")
        return _Place(folder, base, model.revision, is_adapter=True)
    if (folder / "tree.pt").is_file():
        raise UserError(f"{name}: a checkpoint in shards: continue its run with strategy=single, and load the file")
    if not (folder / "config.json").is_file():
        raise UserError(f"{name}: neither a model folder (config.json) nor an adapter folder (adapter_config.json)")
    return _Place(folder, name, None, is_adapter=False)


def _base_of(folder: Path) -> str:
    for name, key in (("smd_adapter.json", "base"), ("adapter_config.json", "base_model_name_or_path")):
        try:
            base = read_object(folder / name)[key]
        except (UserError, KeyError):
            continue
        if base:
            return str(base)
    raise UserError(f"{folder}: does not name its base: give model=dream_7b and model.path=FOLDER")


def _open(place: _Place, base_folder: Path, model: schema.HFConfig) -> Backbone:
    dtype = model.dtype
    if not dtype:  # as the files are; other kinds of float run as bfloat16, as in training
        said = read_config(base_folder)
        dtype = "float32" if "float32" in (said.get("dtype"), said.get("torch_dtype")) else "bfloat16"
        model.dtype = dtype
    if dtype not in DTYPES:
        raise UserError(f"model.dtype={dtype}: choose {' or '.join(DTYPES)}")
    return open_backbone(
        place.base,
        revision=place.revision,
        dtype=DTYPES[dtype],
        add_mask=model.add_mask,
        shift_logits=model.shift_logits,
    )


def _tokenizer(place: _Place, base_folder: Path, backbone: Backbone) -> tuple[Spoken, int]:
    """From the folder's own card or files, else from its base's; and the longest text."""
    for folder in (place.folder, base_folder):
        card = read_model_card(folder)
        if card is not None:
            spoken = open_folder_tokenizer(
                folder, kind=card.kind, mask=card.mask, chat=card.chat, mask_id=_own_mask(card.kind, backbone)
            )
            return spoken, card.length
        if any((folder / name).is_file() for name in _TOKENIZER_FILES):
            return open_hub(str(folder), mask="auto", chat=None, mask_id=backbone.mask_id), DEFAULT_LENGTH
    raise UserError(f"{place.folder}: no tokenizer beside the weights ({', '.join(_TOKENIZER_FILES)}): copy it there")


def _own_mask(kind: str, backbone: Backbone) -> int | None:
    return backbone.mask_id if kind == "hub" else None
