"""`smd prepare`: download, tokenise, pack and check a corpus before any training."""

from __future__ import annotations

import argparse

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
    if args.workers is not None and args.workers < 1:
        raise UserError(f"--workers={args.workers}: must be at least 1")
    from sm_diffusion.app.commands.prepare import prepare  # slow: after the cheap checks

    prepare(args.overrides, dry_run=args.dry_run, verify=args.verify, workers=args.workers)
    return 0
