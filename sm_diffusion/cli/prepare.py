"""`smd prepare`: download, tokenise, pack and check a corpus before any training."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from sm_diffusion.data.stores.shard_preparer import ShardPreparer, cores
from sm_diffusion.types import UserError

HELP = "download, tokenise and pack a corpus into checked shards; interrupted, it goes on where it was"
EXAMPLES = """
smd prepare data=openwebtext --dry-run
smd prepare data=openwebtext data.cache_dir=/scratch/cache
smd prepare data=openwebtext data.path=/datasets/openwebtext --workers 32
smd prepare data=openwebtext --verify
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py; data=... names the corpus")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--dry-run", action="store_true", help="say how much disk, time and tokens; write no shard")
    mode.add_argument("--verify", action="store_true", help="check every shard; build damaged ones again")
    parser.add_argument("--workers", type=int, default=None, help="processes; default: all cores")


def run(args: argparse.Namespace) -> int:
    from sm_diffusion.app.build_data import build_datamodule, build_preparation
    from sm_diffusion.app.validate import validate_data
    from sm_diffusion.config.store import compose_config
    from sm_diffusion.data.chat.cache import ChatMeta, ChatSplit

    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers={args.workers}: must be at least 1")
    config = compose_config("train", args.overrides)
    validate_data(config.data)
    preparation = build_preparation(config.data, download=not args.dry_run)
    if not preparation.preparers:
        if args.dry_run or args.verify:
            raise UserError(f"data={config.data.name}: kept in one small file: --dry-run and --verify are for shards")
        data = build_datamodule(config.data, seed=config.seed, world_size=1)
        data.prepare()
        for split, counts in data.meta.splits.items():
            refused = f"; refused: {_listed(counts.refused)}" if isinstance(counts, ChatSplit) else ""
            print(f"{split:<10} {counts.sequences:,} sequences, {counts.tokens:,} tokens{refused}")
        if isinstance(data.meta, ChatMeta):
            print(f"refused before the split: {_listed(data.meta.refused)}")
        return 0
    for name, preparer in preparation.preparers.items():
        if args.dry_run:
            print(_dry_run(name, preparer, args.workers or cores()))
        elif args.verify:
            repaired = preparer.verify(workers=args.workers)
            print(
                f"{name}: {preparer.folder}: {len(repaired)} damaged shards, built again"
                if repaired
                else f"{name}: {preparer.folder}: every shard has its checksum"
            )
        else:
            preparer.prepare(workers=args.workers)
            print(_summary(name, preparer.folder))
    return 0


def _dry_run(name: str, preparer: ShardPreparer, workers: int) -> str:
    estimate = preparer.estimate()
    return (
        f"{name}: about {estimate.tokens:,} tokens in {estimate.shards} shards, {estimate.shards_left} of them to "
        f"write: {estimate.disk_bytes / 1e6:,.1f} MB in {preparer.folder}, about "
        f"{estimate.core_seconds / workers / 60:.1f} minutes on {workers} cores, after the download"
    )


def _listed(refused: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {number:,}" for reason, number in refused.items()) or "none"


def _summary(name: str, folder: Path) -> str:
    from sm_diffusion.data.stores.shard_format import read_manifest

    manifest = read_manifest(folder)
    assert manifest is not None
    lines = [f"{name}: {len(manifest.shards)} shards in {folder}"]
    for split, counts in manifest.totals.items():
        refused = _listed(counts["refused"])
        lines.append(
            f"  {split:<10} {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
            f"{counts['sequences']:,} sequences, {counts['file_bytes'] / 1e6:,.1f} MB; refused: {refused}"
        )
    return "\n".join(lines)
