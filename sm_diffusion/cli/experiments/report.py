"""`smd report`: a reproduction as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from sm_diffusion.cli.experiments.table import add_source_argument
from sm_diffusion.types import UserError

HELP = "write a reproduction as one HTML page that needs no network"
EXAMPLES = """
smd report quickstart
smd report /data/runs/quickstart --texts 2 -o quickstart.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", help="an experiment, or the folder that holds its runs, such as runs/quickstart")
    parser.add_argument("--texts", type=int, default=0, metavar="N", help="denoise N texts with each row's checkpoint")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE", help="default: report.html beside the runs")
    add_source_argument(parser)


def run(args: argparse.Namespace) -> int:
    from sm_diffusion.files import write_text
    from sm_diffusion.reproduction.collect import WANDB_PREFIX
    from sm_diffusion.reproduction.experiment import RUNS
    from sm_diffusion.reproduction.report.report import build_report, find_experiment

    if args.texts < 0:
        raise UserError(f"--texts {args.texts}: must be >= 0")
    experiment, where = find_experiment(args.target, args.source)
    folder = RUNS if where.startswith(WANDB_PREFIX) else Path(where)
    out = args.out or folder / experiment.name / "report.html"
    write_text(out, build_report(experiment, where, num_texts=args.texts))
    print(out)
    return 0
