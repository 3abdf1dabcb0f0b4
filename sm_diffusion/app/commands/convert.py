"""Adapters into full models, checkpoints from and to other layouts, and folders to and from the hub."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sm_diffusion.files import staged
from sm_diffusion.types import UserError

SHOWN = 12  # tensors listed unless --all is given


def new_place(path: str | Path) -> Path:
    """`path`, which is not there or an empty folder; UserError for another."""
    out = Path(path)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out}: exists already: give a new place")
    return out


# ----------------------------------------------------------------------------------------------------------- adapters


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """How an adapter is merged.

    base: folder or hub id; None: the one that the adapter names. revision: commit of a hub id; None: the pinned one.
    dtype: of what is written. mixing: of an adapter that does not record its own. shard_size: of the largest file.
    """

    base: str | None = None
    revision: str | None = None
    dtype: str = "bfloat16"
    mixing: str | None = None
    shard_size: str = "5GB"


def merge(folder: Path, out: Path, how: MergeSettings) -> str:
    """The adapter's matrices added to its base's, with the omegas, the mixing and the tokenizer beside them."""
    from sm_diffusion.app.model_card import write_card
    from sm_diffusion.app.open_model import ADAPTER, Given, Place, open_network
    from sm_diffusion.denoisers.adapters import peft, transparency
    from sm_diffusion.denoisers.pretrained.export import export_folder
    from sm_diffusion.denoisers.pretrained.settings import HFSettings
    from sm_diffusion.diffusion.soft_mask import PublishedSoftMask

    base = how.base or peft.named_base(folder)
    if base is None:
        raise UserError(f"{folder}: no adapter folder, or one that does not name its base: give --base")
    settings = HFSettings(name="merged", path=base, revision=how.revision, dtype=how.dtype)
    given = Given(model=settings, soft_mask=PublishedSoftMask(mixing=how.mixing or "linear"))
    network = open_network(Place(ADAPTER, folder, str(folder)), given)
    assert network.adapter is not None
    backbone, soft_mask = network.backbone, network.soft_mask
    with staged(out) as part:
        export_folder(peft.merge(network.adapter), part, mask_id=backbone.mask_id, max_shard_size=how.shard_size)
        transparency.write(transparency.describe(soft_mask), part)
        if (folder / peft.OMEGA_FILE).is_file():
            shutil.copy(folder / peft.OMEGA_FILE, part / peft.OMEGA_FILE)
        _copy_tokenizer(folder, network.base, part)
        write_card(part, replace(network.card, soft_mask=soft_mask is not None, mixing=network.mixing), {})
    feedback = "without feedback" if soft_mask is None else f"omega_s {float(soft_mask.omega_s.detach()):.4g}"
    told = f", {network.mixing} mixing" if soft_mask is not None else ""
    assumed = " (assumed: the adapter does not record it; see --mixing)" if network.assumed and not how.mixing else ""
    return f"{folder} merged into {base} ({how.dtype}, {feedback}{told}{assumed}): {out}"


TOKENIZER_FILES = [
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja"),
]


def _copy_tokenizer(adapter: Path, base: Path, out: Path) -> None:
    """All of one place: the run's own, where the adapter has it, else the base's."""
    source = adapter if (adapter / "smd_model.json").is_file() else base
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copy(source / name, out / name)


def adapter_of_checkpoint(checkpoint: str, out: Path) -> Path:
    """The adapter folder a run would have written; the base is opened as the run opened it."""
    from sm_diffusion.app.model_card import card_of_run, write_card
    from sm_diffusion.app.open_model import CHECKPOINT, Given, locate, open_model
    from sm_diffusion.config.compose import restore_train_config
    from sm_diffusion.denoisers.checkpoints.weights import read_provenance
    from sm_diffusion.training.checkpoints.adapter_folder import write_adapter_folder

    place = locate(checkpoint)
    provenance = read_provenance(place.path) if place.kind == CHECKPOINT else None
    if provenance is None or restore_train_config(provenance).peft.kind == "none":
        raise UserError(f"{checkpoint}: holds no adapter")
    model = open_model(checkpoint, Given(weights="raw"))
    with staged(out) as part:
        written = write_adapter_folder(model.predictor, part)
        assert written is not None, "the predictor has an adapter and is not sharded"
        card = card_of_run(model.run, chat=None if model.chat is None else model.chat.kind)
        write_card(part, card, model.tokenizer.files())
    return out


# -------------------------------------------------------------------------------------------------------- checkpoints


def export(checkpoint: Path, out: Path, *, weights: str) -> str:
    """`backbone.*` and `tran_head.raw_*` as published, the run's settings and tokenizer in the file's metadata."""
    from safetensors.torch import save_file

    from sm_diffusion.denoisers.checkpoints.weights import PROVENANCE_KEY, PUBLISHED_OMEGAS, read_weights

    if out.suffix != ".safetensors":
        raise UserError(f"{out}: give a name that ends in .safetensors")
    found = read_weights(checkpoint, weights=weights)
    theirs = {ours: published for published, ours in PUBLISHED_OMEGAS.items()}
    tensors = {f"backbone.{name}": value.contiguous() for name, value in found.denoiser.items()}
    tensors |= {f"tran_head.{theirs[name]}": value for name, value in found.soft_mask.items() if name in theirs}
    metadata = {"format": "pt", "step": str(found.step), "weights": weights}
    if found.provenance is not None:  # what opens it again: settings, mixing, tokenizer, longest text
        metadata[PROVENANCE_KEY] = json.dumps(found.provenance)
    with staged(out) as part:
        save_file(tensors, part, metadata=metadata)
    return f"{len(tensors)} tensors ({weights} weights of step {found.step:,}) in {out}"


def consolidate(checkpoint: Path, out: Path) -> str:
    """A checkpoint in shards as the one file of every other strategy."""
    from sm_diffusion.training.checkpoints import store as ckpt_store

    if not (checkpoint / "tree.pt").is_file():
        raise UserError(f"{checkpoint}: not a checkpoint in shards")
    new_place(out).parent.mkdir(parents=True, exist_ok=True)
    ckpt_store.consolidate(checkpoint, out)
    return str(out)


def import_published(checkpoint: Path, out: Path) -> str:
    """Raw weights, and the average by name where the checkpoint has one. A published file carries no configuration:
    evaluate it with model=... and data=..., or continue it with init_from."""
    import torch

    from sm_diffusion.denoisers.checkpoints.weights import EMA_STATE_KEY, PROVENANCE_KEY, read_weights

    raw = read_weights(checkpoint, weights="raw")
    if raw.provenance is not None and checkpoint.suffix != ".safetensors":
        raise UserError(f"{checkpoint}: is one of this project's checkpoints already")
    state = {f"predictor.denoiser.{name}": value for name, value in raw.denoiser.items()}
    state |= {f"predictor.soft_mask.{name}": value for name, value in raw.soft_mask.items()}
    tree: dict[str, Any] = {"state_dict": state, "global_step": raw.step, "callbacks": {}}
    if raw.provenance is not None:
        tree[PROVENANCE_KEY] = raw.provenance
    try:
        average = read_weights(checkpoint, weights="ema") if checkpoint.suffix != ".safetensors" else None
    except UserError:
        average = None
    if average is not None:
        shadow = {f"denoiser.{name}": value for name, value in average.denoiser.items()}
        tree["callbacks"][EMA_STATE_KEY] = {"decay": 0.9999, "num_updates": raw.step, "shadow": shadow}
    with staged(out) as part:
        torch.save(tree, part)
    extra = ", EMA" if average is not None else ", no EMA"
    return f"{len(state)} tensors of step {raw.step:,}{extra}{', omegas' if raw.soft_mask else ''} in {out}"


def pull(repository: str, out: Path, *, revision: str | None) -> str:
    from sm_diffusion.denoisers.pretrained.loading import fetch

    folder, commit = fetch(repository, revision)
    if not commit:
        raise UserError(f"{repository}: is a folder here, not a repository of the hub")
    with staged(out) as part:
        shutil.copytree(folder, part)
    return f"{repository} at {commit} in {out}"


# --------------------------------------------------------------------------------------------------------------- list


def list_text(path: Path, *, every: bool = False) -> str:
    """Kind, step, configuration, omegas and tensors of a checkpoint file, an adapter folder or a model folder."""
    if path.is_dir():
        return _folder_text(path, every)
    from sm_diffusion.denoisers.checkpoints.weights import read_weights

    weights = read_weights(path, weights="raw")
    lines = [f"{path}: {'checkpoint of this project' if weights.provenance else 'no configuration inside'}"]
    lines.append(f"step       {weights.step:,}")
    if weights.provenance:
        config = weights.provenance["config"]
        names = {key: config[key]["name"] for key in ("model", "variant", "data")}
        names["peft"] = config.get("peft", {}).get("kind", "none")
        lines.append("run        " + ", ".join(f"{key} {name}" for key, name in names.items()))
    try:
        ema = len(read_weights(path, weights="ema").denoiser) if path.suffix != ".safetensors" else 0
    except UserError:
        ema = 0
    lines.append(f"EMA        {'yes' if ema else 'no'}")
    if weights.soft_mask:
        raw = ", ".join(f"{name} {float(value.reshape(-1)[0]):.6g}" for name, value in weights.soft_mask.items())
        lines.append(f"omegas     {raw}")
    return "\n".join([*lines, *_tensors(weights.denoiser, every)])


def _folder_text(path: Path, every: bool) -> str:
    from sm_diffusion.app.model_card import read_card
    from sm_diffusion.denoisers.adapters import peft, transparency
    from sm_diffusion.denoisers.pretrained.loading import read_config, shard_files

    adapter = (path / "adapter_config.json").is_file()
    lines = [f"{path}: {'adapter folder' if adapter else 'model folder'}"]
    if adapter:
        lines.append(f"base       {peft.named_base(path) or 'not named'}")
    else:
        config = read_config(path)
        lines.append(f"model      {config.get('model_type')}, mask token {config.get('mask_token_id')}")
    if (path / transparency.FILE_NAME).is_file():
        omegas = transparency.read(path)
        lines.append(
            f"omegas     {omegas.transparency_alg}, omega_s {omegas.transparency_scale:.6g}, omega_a "
            f"{omegas.transparency_steepness:.6g}, omega_b {omegas.transparency_centre:.6g}, top_k {omegas.mixinputs_k}"
        )
    if (card := read_card(path)) is not None:
        said = {name: value for name, value in card.as_json().items() if not isinstance(value, dict)}
        lines.append("recorded   " + ", ".join(f"{name} {value}" for name, value in said.items()))
    return "\n".join([*lines, *_tensors(_shapes_of(shard_files(path)), every)])


def _shapes_of(files: list[Path]) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def _tensors(named: Mapping[str, Any], every: bool) -> list[str]:
    total = sum(tensor.numel() for tensor in named.values())
    rows = [f"  {tuple(t.shape)!s:<18} {str(t.dtype).removeprefix('torch.'):<9} {name}" for name, t in named.items()]
    more = [] if every or len(rows) <= SHOWN else [f"  and {len(rows) - SHOWN} more (--all shows them)"]
    return [f"tensors    {len(rows)}, {total:,} numbers", *(rows if every else rows[:SHOWN]), *more]
