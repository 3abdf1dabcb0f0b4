"""The one way to open a trained model: `open_model(path or name)`, whatever it was saved as.

    run checkpoint           runs/NAME/checkpoints/last.ckpt, or its run folder runs/NAME
    exported file            NAME.safetensors of `smd convert export`
    published checkpoint     a Lightning .ckpt or a .safetensors of MDLM or soft-masked MDLM, with model=... data=...
    adapter folder           adapter_config.json and its files, on the base it names
    model folder             config.json and *.safetensors: merged by `smd convert merge`, or published
    hub name                 owner/name@revision of either folder; a pinned name needs no revision

`locate` says which of them a path is. A folder that does not record something opens, and one line says what is assumed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from sm_diffusion import registry
from sm_diffusion.app.build import build_predictor
from sm_diffusion.app.console import say
from sm_diffusion.app.model import Model
from sm_diffusion.app.model_card import ModelCard, read_card
from sm_diffusion.app.open_tokenizer import OpenedTokenizer, tokenizer_of_data, tokenizer_of_files
from sm_diffusion.config.compose import compose_config, restore_train_config
from sm_diffusion.config.root import EvalConfig, TrainConfig
from sm_diffusion.data.settings import DataSettings
from sm_diffusion.denoisers.adapters import peft, transparency
from sm_diffusion.denoisers.checkpoints.weights import Weights, load_into, read_provenance, read_weights
from sm_diffusion.denoisers.pretrained.hf import HFDenoiser
from sm_diffusion.denoisers.pretrained.loading import (
    PINNED,
    Backbone,
    check_tokenizer,
    fetch,
    open_backbone,
    read_config,
)
from sm_diffusion.denoisers.pretrained.settings import DTYPES, HFSettings
from sm_diffusion.denoisers.settings import ModelSettings, label
from sm_diffusion.diffusion.contracts import Denoiser
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.soft_mask import PublishedSoftMask, SoftMaskBase, SoftMaskSettings
from sm_diffusion.training.run_folder import RunFolder
from sm_diffusion.training.variant_settings import MDLMVariant, SoftMaskedVariant
from sm_diffusion.types import UserError

# Dream's and LLaDA's own fine-tuning lengths. Their max_position_embeddings are far beyond what they were trained on.
DEFAULT_LENGTH = 2048
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "tokenizer_config.json")
CHECKPOINT, ADAPTER, FOLDER = "checkpoint", "adapter folder", "model folder"


@dataclass(frozen=True, kw_only=True)
class Given:
    """What a caller says beside the path: it fills in what the files do not say.

    weights:   "ema" or "raw", of a checkpoint; "ema" means raw where a run kept no average by default (adapters).
    model:     of a published checkpoint its sizes; of a folder dtype, add_mask, shift_logits, and path and revision of
               an adapter's base that has moved.
    data:      of a published checkpoint the corpus and its tokenizer; of others another corpus and longest text.
    soft_mask: of a published checkpoint top_k and mixing; of a folder its mixing, where it records none.
    """

    weights: str = "ema"
    model: ModelSettings | None = None
    data: DataSettings | None = None
    soft_mask: SoftMaskSettings = field(default_factory=PublishedSoftMask)

    @staticmethod
    def of(config: EvalConfig) -> Given:
        return Given(weights=config.weights, model=config.model, data=config.data, soft_mask=config.soft_mask)


class Place(NamedTuple):
    """kind: CHECKPOINT (path is a file), ADAPTER or FOLDER. name: as asked for. revision: of a hub name."""

    kind: str
    path: Path
    name: str
    revision: str | None = None


class Network(NamedTuple):
    """What a folder holds beside its tokenizer. base: where the weights are. card: of the folder or its base.
    assumed: what no file says."""

    backbone: Backbone
    adapter: peft.Adapter | None
    soft_mask: SoftMaskBase | None
    mixing: str | None
    base: Path
    card: ModelCard
    settings: HFSettings
    assumed: list[str]


def load(path: str | Path, weights: str = "ema", device: str = "auto", overrides: Sequence[str] = ()) -> Model:
    """A trained model on a device; what `sm_diffusion.load` calls.

    Args:
        path: a checkpoint, a run, model or adapter folder, or a hub name (see the head of this file).
        weights: "ema" or "raw", of a checkpoint; "ema" means raw where a run kept no average by default (adapters).
        device: "auto" (CUDA where there is one), "cpu", "cuda", ...
        overrides: of eval.py. A published checkpoint does not say its sizes and tokenizer:
            ["model=dit_169m", "data=text_files", "data.paths=[x]", "data.tokenizer.kind=hub", ...];
            a folder takes model=NAME with model.dtype and model.path (where an adapter's base has moved).

    Raises:
        UserError: for what is missing, damaged or foreign, and for a device that cannot be used.
    """
    config: EvalConfig = compose_config("eval", ["checkpoint=given", *overrides])
    config.weights = weights
    model = open_model(path, Given.of(config))
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        model.predictor.to(name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device}: cannot be used ({str(error).splitlines()[0]}); choose cpu") from None
    return model


def open_model(path: str | Path, given: Given | None = None) -> Model:
    """A trained model on the CPU, in evaluation mode, with everything that is needed to use it.

    Args:
        path: see the head of this file.
        given: fills in what the files do not say.

    Raises:
        UserError: for what is missing, damaged or foreign; one line that says what to do.
    """
    given = given or Given()
    place = locate(str(path))
    return _of_checkpoint(place, given) if place.kind == CHECKPOINT else _of_folder(place, given)


def locate(name: str) -> Place:
    """What a path or hub name is. UserError for what is none of them."""
    path = Path(name)
    if path.is_file():
        return Place(CHECKPOINT, path, name)
    if path.is_dir():
        return _locate_folder(path, name, None)
    hub, _, revision = name.partition("@")
    if hub not in PINNED and not revision:
        raise UserError(
            f"{name}: no such file or folder; give a checkpoint, a run, model or adapter folder, or a hub id with its "
            "revision (owner/name@commit)"
        )
    return _locate_folder(fetch(hub, revision or None)[0], hub, revision or None)


def _locate_folder(folder: Path, name: str, revision: str | None) -> Place:
    last = RunFolder(folder).last
    if (folder / "tree.pt").is_file() or (last / "tree.pt").is_file():
        raise UserError(f"{name}: a checkpoint in shards: make it one file with smd convert consolidate")
    if last.is_file():
        return Place(CHECKPOINT, last, name)
    if (folder / "adapter_config.json").is_file():
        return Place(ADAPTER, folder, name, revision)
    if (folder / "config.json").is_file():
        return Place(FOLDER, folder, name, revision)
    raise UserError(
        f"{name}: neither a model folder (config.json) nor an adapter folder (adapter_config.json) nor a run "
        "(checkpoints/last.ckpt)"
    )


# -------------------------------------------------------------------------------------------------------- checkpoints


def _of_checkpoint(place: Place, given: Given) -> Model:
    weights, which = read_checkpoint(place.path, given.weights)
    run = run_config(weights, given)
    _refuse_unused_soft_mask(weights, given)
    tokenizer, chat = _tokenizer_of_checkpoint(weights, run)
    predictor = build_predictor(run, vocab_size=tokenizer.vocab_size, mask_id=tokenizer.mask_id)
    copy_weights(predictor, weights, what="model and corpus")
    return Model(
        predictor=predictor.eval(),
        mixing=run.soft_mask.mixing if isinstance(predictor, SoftMaskPredictor) else None,
        tokenizer=tokenizer,
        chat=chat,
        length=_at_most(run.data.length, predictor.denoiser),
        run=run,
        source=str(place.path),
        weights=which,
        step=weights.step,
        files=(place.path,),
    )


def read_checkpoint(path: Path, weights: str) -> tuple[Weights, str]:
    """The weights of a checkpoint file, and which they are: "ema" or "raw" (see `Given.weights`)."""
    if weights == "ema":
        provenance = read_provenance(path)
        run = None if provenance is None else restore_train_config(provenance)
        if run is not None and run.peft.kind != "none" and not run.callbacks.ema.enabled:
            weights = "raw"
    return read_weights(path, weights=weights), weights


def run_config(weights: Weights, given: Given) -> TrainConfig:
    """The training configuration of a checkpoint, with the corpus and network that are given instead."""
    if weights.provenance is not None:
        run = restore_train_config(weights.provenance)
    else:
        if given.model is None or given.data is None:
            raise UserError(
                f"checkpoint={weights.path}: a published checkpoint does not say its model and corpus; "
                "give model=... and data=..."
            )
        variant = SoftMaskedVariant() if weights.soft_mask else MDLMVariant()
        run = replace(compose_config("train"), variant=variant, soft_mask=given.soft_mask)
    run.model = given.model or run.model
    run.data = given.data or run.data
    return run


def _refuse_unused_soft_mask(weights: Weights, given: Given) -> None:
    """UserError for soft_mask settings that would change nothing."""
    if given.soft_mask == PublishedSoftMask():
        return
    if weights.provenance is not None and weights.soft_mask:
        raise UserError(f"soft_mask: {weights.path} has a soft mask of its own, learned in training; leave it out")
    if not weights.soft_mask:
        raise UserError(
            f"soft_mask: {weights.path} is a plain MDLM without omegas, so nothing would be softened; leave it out, or "
            f"train soft-masked from it (train.py init_from={weights.path} soft_mask=warm)"
        )


def _tokenizer_of_checkpoint(weights: Weights, run: TrainConfig) -> OpenedTokenizer:
    """Its own, where it carries one: not that of another corpus it is used on."""
    provenance = weights.provenance
    if provenance is None or "tokenizer" not in provenance:
        return tokenizer_of_data(run.data, None)
    return tokenizer_of_data(restore_train_config(provenance).data, provenance["tokenizer"])


def copy_weights(predictor: Predictor, weights: Weights, *, what: str) -> bool:
    """Copy a checkpoint's network, and its omegas where it has any, into a predictor; whether there were omegas.

    UserError lists what is missing, unexpected or of another shape; `what` is what may differ.
    """
    load_into(predictor.denoiser, weights.denoiser, source=weights.path, what=what)
    if not isinstance(predictor, SoftMaskPredictor):
        return False
    own = predictor.soft_mask.state_dict()
    found = {name: value for name, value in weights.soft_mask.items() if name in own}
    if found:
        load_into(predictor.soft_mask, found, source=weights.path, what="soft mask")
    return bool(found)


def _at_most(length: int, denoiser: Denoiser) -> int:
    """The positions that a backbone of transformers has bound the longest text."""
    return min(length, int(denoiser.lm.config.max_position_embeddings)) if isinstance(denoiser, HFDenoiser) else length


# ------------------------------------------------------------------------------------------------------------ folders


def _of_folder(place: Place, given: Given) -> Model:
    network = open_network(place, given)
    backbone, card = network.backbone, network.card
    tokenizer, chat = _tokenizer_of_folder(place, network, given)
    check_tokenizer(
        backbone, size=min(tokenizer.vocab_size, backbone.vocab_size + 1), mask_id=tokenizer.mask_id
    )
    length = card.length if given.data is None else given.data.length
    if length is None:
        length = DEFAULT_LENGTH
        network.assumed.append(f"texts of at most {length:,} tokens (data=... data.length=N)")
    if network.assumed:
        say(f"{place.name}: does not record everything; assumed: {', '.join(network.assumed)}")
    predictor: Predictor = HardMaskPredictor(backbone.denoiser, mask_id=backbone.mask_id)
    if network.soft_mask is not None:
        assert network.mixing is not None
        predictor = SoftMaskPredictor(
            backbone.denoiser,
            network.soft_mask,
            mask_id=backbone.mask_id,
            mixing=registry.find("mixing", network.mixing),
        )
    return Model(
        predictor=predictor.eval(),
        mixing=network.mixing,
        tokenizer=tokenizer,
        chat=chat,
        length=_at_most(length, backbone.denoiser),
        run=_run_of_folder(network, given, length, chat=chat is not None),
        source=place.name if place.revision is None else f"{place.name}@{place.revision}",
        weights="as published",
        step=None,
        files=(network.base,) if network.adapter is None else (network.base, place.path),
    )


def open_network(place: Place, given: Given) -> Network:
    """The weights of an adapter or model folder, with its soft mask; the tokenizer is not looked at."""
    settings = given.model or HFSettings(name="folder", dtype="")
    if not isinstance(settings, HFSettings):
        raise UserError(f"model={label(settings)}: {place.name} is the folder of a causal LM: leave model out")
    name, revision = (place.name, place.revision)
    if place.kind == ADAPTER:
        name, revision = _base_of(place, settings), settings.revision
    base, _ = fetch(name, revision)
    card = read_card(place.path)
    if card is None:  # an adapter's base knows its tokenizer and longest text, not how the adapter was trained
        card = replace(read_card(base) or ModelCard(), soft_mask=None, mixing=None, objective=None, schedule=None)
    backbone = open_backbone(
        name,
        revision=revision,
        dtype=_dtype(base, settings),
        add_mask=settings.add_mask,
        shift_logits=settings.shift_logits,
    )
    adapter: peft.Adapter | None = None
    soft_mask: SoftMaskBase | None = None
    if place.kind == ADAPTER:
        adapter, soft_mask = peft.load(backbone.denoiser, place.path, trainable=False)
    elif (place.path / transparency.FILE_NAME).is_file():
        soft_mask = peft.read_soft_mask(place.path)
    if card.soft_mask and soft_mask is None:
        raise UserError(f"{place.name}: was trained soft-masked and has no omegas: copy {transparency.FILE_NAME} there")
    assumed: list[str] = []
    mixing = None if soft_mask is None else _mixing(place, card, given, assumed)
    return Network(backbone, adapter, soft_mask, mixing, base, card, settings, assumed)


def _base_of(place: Place, settings: HFSettings) -> str:
    base = settings.path or peft.named_base(place.path)
    if base is None:
        raise UserError(f"{place.name}: does not name its base: give model=dream_7b and model.path=FOLDER")
    if base.startswith("random "):
        raise UserError(f"{place.name}: its base is {base}, which no file holds: load the run's checkpoint instead")
    return base


def _dtype(base: Path, settings: HFSettings) -> torch.dtype:
    """As the files are; other kinds of float run as bfloat16, as in training."""
    if not settings.dtype:
        said = read_config(base)
        settings.dtype = "float32" if "float32" in (said.get("dtype"), said.get("torch_dtype")) else "bfloat16"
    if settings.dtype not in DTYPES:
        raise UserError(f"model.dtype={settings.dtype}: choose {' or '.join(DTYPES)}")
    return DTYPES[settings.dtype]


def _mixing(place: Place, card: ModelCard, given: Given, assumed: list[str]) -> str:
    """The recorded one. Without a record the one that is given: linear, unless somebody says otherwise."""
    wanted = given.soft_mask.mixing
    if card.mixing is None:
        assumed.append(f"{wanted} mixing (soft_mask.mixing=...)")
        return wanted
    if wanted not in (card.mixing, PublishedSoftMask().mixing):
        raise UserError(f"soft_mask.mixing={wanted}: {place.name} was trained with {card.mixing}: leave it out")
    return card.mixing


def _tokenizer_of_folder(place: Place, network: Network, given: Given) -> OpenedTokenizer:
    """From the folder's own record or files, else from the data that is given, else from its base's."""
    backbone, name = network.backbone, place.name
    for folder in dict.fromkeys((place.path, network.base)):
        card = read_card(folder)
        if card is not None and card.tokenizer_kind is not None:
            mask_id = backbone.mask_id if card.tokenizer_kind == "hub" else None
            chat = card.chat is not None
            return tokenizer_of_files(folder, kind=card.tokenizer_kind, mask=card.mask, chat=chat, mask_id=mask_id)
        if given.data is not None:
            return tokenizer_of_data(given.data, None)
        if any((folder / file).is_file() for file in TOKENIZER_FILES):
            return tokenizer_of_files(folder, kind="hub", mask="auto", chat=None, mask_id=backbone.mask_id)
    raise UserError(
        f"{name}: no tokenizer beside the weights ({', '.join(TOKENIZER_FILES)}): copy it there, or give the data "
        "option it was trained with, data=..."
    )


def _run_of_folder(network: Network, given: Given, length: int, *, chat: bool) -> TrainConfig:
    """The settings a run would have had that are known: what evaluators build their objective from."""
    variant = MDLMVariant() if network.soft_mask is None else SoftMaskedVariant()
    given_mask: Any = given.soft_mask
    soft_mask = replace(given_mask, mixing=network.mixing or "linear")
    run: TrainConfig = compose_config("train", ["objective=sft" if chat else "objective=mdlm"])
    return replace(
        run,
        variant=variant,
        soft_mask=soft_mask,
        model=network.settings,
        data=given.data or DataSettings(name="none", length=length),
        objective=network.card.objective or run.objective,
        schedule=network.card.schedule or run.schedule,
    )
