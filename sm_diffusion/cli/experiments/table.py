"""`smd table`: the results of an experiment beside expected values."""

from __future__ import annotations

import argparse

HELP = "print the results of an experiment beside expected values"
EXAMPLES = """
smd table quickstart
smd table quickstart --seeds
smd table quickstart --from /data/runs --format latex > quickstart.tex
smd table quickstart --from wandb:my-team/sm_diffusion --format html > quickstart.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from sm_diffusion.reproduction.report.table import FORMATS

    parser.add_argument("experiment", help="a folder of experiments/")
    parser.add_argument("--format", choices=FORMATS, default="text", help="default: text")
    parser.add_argument("--seeds", action="store_true", help="one line a run instead of mean ± standard deviation")
    add_source_argument(parser)


def add_source_argument(parser: argparse.ArgumentParser) -> None:
    """--from, and --runs as `smd run` calls it."""
    from sm_diffusion.reproduction.experiment import RUNS

    help_text = f"the folder of all runs, default {RUNS}/, or wandb:ENTITY/PROJECT"
    parser.add_argument("--from", "--runs", dest="source", default=str(RUNS), metavar="WHERE", help=help_text)


def run(args: argparse.Namespace) -> int:
    from sm_diffusion.reproduction.collect import check_source
    from sm_diffusion.reproduction.experiment import load_experiment
    from sm_diffusion.reproduction.report.table import report

    experiment = load_experiment(args.experiment)
    print(report(experiment, runs=check_source(args.source), style=args.format, by_seed=args.seeds).rstrip("\n"))
    return 0
