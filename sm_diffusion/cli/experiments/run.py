"""`smd run`: the runs of an experiment that are missing, then its table."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "train and evaluate the rows of an experiment that are missing, then print its table"
EXAMPLES = """
smd run quickstart
smd run quickstart --dry-run
smd run quickstart --only pretrain
smd run quickstart --seeds 1,2,3 --jobs 2
smd run quickstart --runs /tmp/smoke trainer.max_steps=20
smd run owt_continuation --launcher slurm strategy=ddp trainer.devices=8
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from sm_diffusion.reproduction.experiment import RUNS

    parser.add_argument("experiment", help="a folder of experiments/")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="for every row that train.py, or else eval.py, makes"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and run nothing")
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help="this row; may be repeated")
    parser.add_argument(
        "--seeds", type=seeds_of, default=[], metavar="1,2,3", help="default: the experiment's, or each row's own"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace runs made with other settings")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR", help=f"where runs lie, default {RUNS}/")
    parser.add_argument("--jobs", type=int, metavar="N", help="runs at once, each with a log; default 1, launcher: all")
    parser.add_argument("--launcher", metavar="NAME", help="Hydra launcher of each run, such as slurm")


def seeds_of(text: str) -> list[int]:
    """1,2,3 -> [1, 2, 3]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give numbers separated by commas, for example 1,2,3") from None


def run(args: argparse.Namespace) -> int:
    from sm_diffusion.reproduction.experiment import load_experiment
    from sm_diffusion.reproduction.report.table import report
    from sm_diffusion.reproduction.rows import plan_runs
    from sm_diffusion.reproduction.run import dry_run, execute, locked, selected, workers_of, written_files

    experiment = load_experiment(args.experiment)
    planned = plan_runs(experiment, seeds=args.seeds, extra=args.overrides, runs=args.runs)
    chosen = selected(planned, args.only, experiment)
    workers = workers_of(args.jobs, args.launcher, len(chosen))
    options = {"overwrite": args.overwrite, "launcher": args.launcher}
    if args.dry_run:
        dry_run(chosen, **options)
        return 0
    with locked(chosen, args.runs):
        execute(chosen, planned, name=experiment.name, workers=workers, **options)
    print(f"\n{report(experiment, runs=args.runs)}\n\nfiles:")
    print("\n".join(f"  {path}" for path in written_files(chosen)))
    return 0
