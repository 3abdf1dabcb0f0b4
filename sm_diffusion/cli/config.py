"""`smd config`: show, list and check configurations without running anything."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from sm_diffusion.types import UserError

HELP = "show the resolved configuration, list every group and option, or check all that ship"
EXAMPLES = """
smd config model=dit_169m variant=mdlm
smd config train experiments=quickstart/pretrain seed=3
smd config eval checkpoint=runs/quickstart/pretrain/checkpoints/last.ckpt
smd config --groups
smd config --check-all
"""
PROGRAMS = ("train", "eval")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", nargs="*", metavar="[train|eval] [KEY=VALUE ...]", help="program and overrides")
    parser.add_argument("--groups", action="store_true", help="list the groups, their options and the experiments")
    parser.add_argument("--check-all", action="store_true", help="compose and validate everything that ships")


def run(args: argparse.Namespace) -> int:
    from sm_diffusion.reproduction.shipped import check_all, groups_text

    if args.groups:
        from sm_diffusion.paths import ROOT

        print(groups_text(ROOT))
        return 0
    if args.check_all:
        return check_all()
    import yaml

    from sm_diffusion.app.compose import composed

    program, overrides = split_program(args.words)
    print(yaml.safe_dump(composed(program, overrides), sort_keys=False, allow_unicode=True), end="")
    return 0


def split_program(words: Sequence[str]) -> tuple[str, list[str]]:
    """("train" or "eval", overrides); train when neither is named."""
    if words and words[0] in PROGRAMS:
        return words[0], list(words[1:])
    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise UserError(f"{word}: neither a program (train, eval) nor an override of the form key=value")
    return "train", list(words)
