"""`smd convert`: adapters into full models, checkpoints from and to other layouts, and folders to and from the hub."""

from __future__ import annotations

import argparse
from pathlib import Path

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
    from sm_diffusion.app.commands.convert import (
        MergeSettings,
        adapter_of_checkpoint,
        consolidate,
        export,
        import_published,
        list_text,
        merge,
        new_place,
        pull,
    )

    match args.action:
        case "list":
            print(list_text(Path(args.path), every=args.all))
        case "adapter":
            print(f"adapter written to {adapter_of_checkpoint(args.checkpoint, new_place(args.out))}")
        case "merge":
            settings = MergeSettings(
                base=args.base,
                revision=args.revision,
                dtype=args.dtype,
                mixing=args.mixing,
                shard_size=args.shard_size,
            )
            print(merge(Path(args.adapter), new_place(args.out), settings))
        case "export":
            print(export(Path(args.checkpoint), new_place(args.out), weights=args.weights))
        case "import":
            print(import_published(Path(args.checkpoint), new_place(args.out)))
        case "consolidate":
            print(consolidate(Path(args.checkpoint), Path(args.out)))
        case "push":
            from sm_diffusion.denoisers.pretrained.export import push_folder

            commit = push_folder(Path(args.folder), args.repository, private=not args.public)
            print(f"{args.repository} at {commit}")
        case "pull":
            print(pull(args.repository, new_place(args.out), revision=args.revision))
        case action:
            raise UserError(f"{action}: no such action; see smd convert --help")
    return 0
