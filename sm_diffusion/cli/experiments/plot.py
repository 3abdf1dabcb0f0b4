"""`smd plot`: figures of a run or of an experiment, as files for print."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sm_diffusion.cli.experiments.table import add_source_argument
from sm_diffusion.types import UserError

HELP = "draw loss curves, omegas, lambda(entropy), accuracy against NFE, frontier and throughput"
EXAMPLES = """
smd plot quickstart
smd plot quickstart --only loss --only lambda --format pdf --out figures
smd plot runs/quickstart/sm_updates
smd plot owt_generation --from wandb:my-team/sm_diffusion
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from sm_diffusion.reproduction.report.figures import FORMATS
    from sm_diffusion.reproduction.report.plots import KINDS

    parser.add_argument("target", help="a run folder, or the name of an experiment")
    parser.add_argument("--only", action="append", default=[], choices=KINDS, help="this figure; may be repeated")
    parser.add_argument("--format", action="append", choices=FORMATS, help="default png; may be repeated")
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: plots/ in the experiment's folder of runs")
    add_source_argument(parser)


def run(args: argparse.Namespace) -> int:
    from sm_diffusion.reproduction.experiment import list_experiments
    from sm_diffusion.reproduction.report.plots import draw_target

    formats = args.format or ["png"]
    files, reasons = draw_target(args.target, args.source, only=args.only, formats=formats, out=args.out)
    for name, reason in reasons.items():
        print(f"not drawn: {name}: {reason}", file=sys.stderr)
    if not files and args.target in list_experiments():
        raise UserError(f"{args.target}: nothing to draw in {args.source}; run it first: smd run {args.target}")
    if not files:
        raise UserError(f"{args.target}: has logged nothing to draw; train with logger.csv=true")
    print("\n".join(map(str, files)))
    return 0
