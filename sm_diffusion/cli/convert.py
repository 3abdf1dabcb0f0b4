"""`smd convert`: adapters into full models, checkpoints from and to other layouts, and folders to and from the hub."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sm_diffusion.files import staged
from sm_diffusion.types import UserError

HELP = "merge adapters, export and import checkpoints, list what one holds, push to and pull from the hub"
EXAMPLES = """
smd convert list runs/NAME/checkpoints/last.ckpt
smd convert adapter runs/NAME/checkpoints/last.ckpt my-adapter
smd convert merge runs/NAME/adapter full-model
smd convert merge authors-adapter full-model --base Dream-org/Dream-v0-Instruct-7B
smd convert export runs/NAME/checkpoints/last.ckpt weights.safetensors --weights ema
smd convert import mdlm.ckpt ours.ckpt
smd convert consolidate runs/NAME/checkpoints/last.ckpt one-file.ckpt
smd convert push full-model me/dream-sm
smd convert pull me/dream-sm full-model --revision COMMIT
"""
SHOWN = 12  # tensors listed unless --all is given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, text: str, *places: str) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=text, description=text)
        for place in places:
            sub.add_argument(place)
        return sub

    listing = action("list", "what a checkpoint, an adapter folder or a model folder holds", "path")
    listing.add_argument("--all", action="store_true", help="every tensor")
    action("adapter", "adapter folder from one of our checkpoints", "checkpoint", "out")
    merge = action("merge", "adapter folder + its base -> a full model folder of safetensors", "adapter", "out")
    merge.add_argument("--base", help="folder or hub id; default: the one the adapter names")
    merge.add_argument("--revision", help="commit of a hub id; default: the pinned one")
    merge.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    merge.add_argument("--mixing", choices=("linear", "spherical"), help="of an adapter that does not record it")
    merge.add_argument("--shard-size", default="5GB", help="largest file, default 5GB")
    export = action("export", "our checkpoint -> safetensors with the published names", "checkpoint", "out")
    export.add_argument("--weights", choices=("ema", "raw"), default="ema")
    action("import", "a published MDLM or soft-masked checkpoint -> our layout, EMA too", "checkpoint", "out")
    action("consolidate", "a checkpoint in shards -> the one file of every other strategy", "checkpoint", "out")
    push = action("push", "upload a folder to the Hugging Face hub", "folder", "repository")
    push.add_argument("--public", action="store_true", help="default: private")
    pull = action("pull", "download a model or adapter folder from the hub", "repository", "out")
    pull.add_argument("--revision", help="commit, tag or branch; default: the pinned commit")


def run(args: argparse.Namespace) -> int:
    match args.action:
        case "list":
            print(list_text(Path(args.path), every=args.all))
        case "adapter":
            print(f"adapter written to {adapter_of_checkpoint(args.checkpoint, _new(args.out))}")
        case "merge":
            print(merge(args))
        case "export":
            print(export(Path(args.checkpoint), _new(args.out), weights=args.weights))
        case "import":
            print(import_published(Path(args.checkpoint), _new(args.out)))
        case "consolidate":
            print(consolidate(Path(args.checkpoint), Path(args.out)))
        case "push":
            from sm_diffusion.denoisers.pretrained.export import push_folder

            commit = push_folder(Path(args.folder), args.repository, private=not args.public)
            print(f"{args.repository} at {commit}")
        case "pull":
            print(pull(args.repository, _new(args.out), revision=args.revision))
        case action:
            raise UserError(f"{action}: no such action; see smd convert --help")
    return 0


def _new(path: str) -> Path:
    out = Path(path)
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"{out}: exists already: give a new place")
    return out


# ----------------------------------------------------------------------------------------------------------- adapters


def merge(args: argparse.Namespace) -> str:
    """The adapter's matrices added to its base's, with the omegas, the mixing and the tokenizer beside them."""
    from dataclasses import replace

    from sm_diffusion.app.model_card import write_card
    from sm_diffusion.app.open_model import ADAPTER, Given, Place, open_network
    from sm_diffusion.config.schema_peft import HFConfig
    from sm_diffusion.denoisers.adapters import peft, transparency
    from sm_diffusion.denoisers.pretrained.export import export_folder
    from sm_diffusion.diffusion.soft_mask import PublishedSoftMask

    folder, out = Path(args.adapter), _new(args.out)
    base = args.base or peft.named_base(folder)
    if base is None:
        raise UserError(f"{folder}: no adapter folder, or one that does not name its base: give --base")
    settings = HFConfig(name="merged", path=base, revision=args.revision, dtype=args.dtype)
    given = Given(model=settings, soft_mask=PublishedSoftMask(mixing=args.mixing or "linear"))
    network = open_network(Place(ADAPTER, folder, str(folder)), given)
    assert network.adapter is not None
    backbone, soft_mask = network.backbone, network.soft_mask
    with staged(out) as part:
        export_folder(peft.merge(network.adapter), part, mask_id=backbone.mask_id, max_shard_size=args.shard_size)
        transparency.write(transparency.describe(soft_mask), part)
        if (folder / peft.OMEGA_FILE).is_file():
            shutil.copy(folder / peft.OMEGA_FILE, part / peft.OMEGA_FILE)
        _copy_tokenizer(folder, network.base, part)
        write_card(part, replace(network.card, soft_mask=soft_mask is not None, mixing=network.mixing), {})
    feedback = "without feedback" if soft_mask is None else f"omega_s {float(soft_mask.omega_s.detach()):.4g}"
    told = f", {network.mixing} mixing" if soft_mask is not None else ""
    assumed = " (assumed: the adapter does not record it; see --mixing)" if network.assumed and not args.mixing else ""
    return f"{folder} merged into {base} ({args.dtype}, {feedback}{told}{assumed}): {out}"


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
    from sm_diffusion.app.build_hf import write_adapter_folder
    from sm_diffusion.app.model_card import card_of_run, write_card
    from sm_diffusion.app.open_model import CHECKPOINT, Given, locate, open_model
    from sm_diffusion.config.compose import restore_train_config
    from sm_diffusion.denoisers.checkpoints.weights import read_provenance

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
    _new(str(out)).parent.mkdir(parents=True, exist_ok=True)
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
