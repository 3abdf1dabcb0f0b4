"""`smd search`: settings searched with Optuna."""

from __future__ import annotations

import argparse
from pathlib import Path

from sm_diffusion.types import UserError

HELP = "search settings with Optuna: trials in processes, hopeless ones stopped early, resumable"
EXAMPLES = """
smd search lr data=python_code 'optim.lr=tag(log,interval(1e-4,1e-2))' trainer.val_every_steps=200 --trials 20
smd search omegas experiments=quickstart/sm_updates 'soft_mask.top_k=1,3,5' 'variant.p_sm=interval(.5,1)' --pruner none
smd search omega_s data=python_code 'soft_mask.omega_s=interval(.05,.9)' trainer.val_every_steps=200 --jobs 2
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from sm_diffusion.reproduction.experiment import RUNS
    from sm_diffusion.reproduction.search.search import PRUNERS

    parser.add_argument("name", help="of the search; its folder is RUNS/NAME")
    parser.add_argument(
        "overrides", nargs="+", metavar="KEY=VALUE", help="as for train.py; searched ones as Hydra's sweeps"
    )
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="with those of earlier calls; default 20")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials at once, default 1")
    parser.add_argument("--metric", default="val/ppl", metavar="NAME", help="of a validation, default val/ppl")
    parser.add_argument("--pruner", choices=PRUNERS, default="median", help="what stops a trial, default median")
    parser.add_argument("--startup", type=int, default=5, metavar="N", help="trials drawn at random first; default 5")
    parser.add_argument("--seed", type=int, default=1, help="of the search (training has its own: seed=1), default 1")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR", help=f"default {RUNS}/")


def check_arguments(args: argparse.Namespace) -> None:
    from sm_diffusion.reproduction.search.sweep import METRICS

    for name in ("trials", "jobs", "startup"):
        if vars(args)[name] < 1:
            raise UserError(f"--{name} {vars(args)[name]}: must be >= 1")
    known = [metric for metric in METRICS if metric.startswith("val/")]
    if args.metric not in known:
        raise UserError(f"--metric {args.metric}: not of a validation; choose from {', '.join(known)}")
    if "=" in args.name or not args.name.replace("_", "").replace("-", "").isalnum():
        raise UserError(f"{args.name}: not a name; the first word names the search, in letters, digits, - and _")


def run(args: argparse.Namespace) -> int:
    from sm_diffusion.reproduction.search.search import StudySettings, run_search

    check_arguments(args)
    settings = StudySettings(
        metric=args.metric,
        pruner=args.pruner,
        startup=args.startup,
        seed=args.seed,
        trials=args.trials,
        jobs=args.jobs,
    )
    run_search(args.runs / args.name, args.overrides, settings)
    return 0
