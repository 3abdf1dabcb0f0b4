"""`smd sweep`: a W&B sweep file from a Hydra search space."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from sm_diffusion.types import UserError

HELP = "write a W&B sweep file from a Hydra search space; agents run it"
EXAMPLES = """
smd sweep experiments=quickstart/sm_updates 'soft_mask.top_k=choice(1,3,5)' 'variant.p_sm=interval(0.5,1.0)'
smd sweep experiments=quickstart/sm_updates 'optim.lr=tag(log,interval(1e-4,1e-2))' --metric val/ppl -o sweep.yaml
smd sweep 'optim.lr=1e-4,1e-3' 'seed=range(1,4)' --method grid
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from sm_diffusion.reproduction.search.sweep import METHODS, METRICS

    parser.add_argument(
        "overrides", nargs="+", metavar="KEY=VALUE", help="as for train.py; searched ones as Hydra's sweeps"
    )
    parser.add_argument("--metric", default="val/ppl", choices=METRICS, metavar="NAME", help="default val/ppl")
    parser.add_argument("--goal", choices=("minimize", "maximize"), help="default: by the metric")
    parser.add_argument("--method", choices=METHODS, default="bayes", help="default bayes")
    parser.add_argument("--run-cap", type=int, metavar="N", help="runs after which the sweep ends")
    parser.add_argument("--name", help="default: the name of the file")
    parser.add_argument("-o", "--out", type=Path, default=Path("sweep.yaml"), metavar="FILE", help="default sweep.yaml")


def run(args: argparse.Namespace) -> int:
    from sm_diffusion.config.search_space import parse_search
    from sm_diffusion.files import write_text
    from sm_diffusion.reproduction.collect import is_higher_better
    from sm_diffusion.reproduction.search.sweep import check, refuse_own_keys, sweep_config, sweep_text

    if args.run_cap is not None and args.run_cap < 1:
        raise UserError(f"--run-cap {args.run_cap}: must be >= 1")
    refuse_own_keys(args.overrides)
    search = parse_search(args.overrides)
    goal = args.goal or ("maximize" if is_higher_better(args.metric) else "minimize")
    settings = {"method": args.method, "metric": args.metric, "goal": goal, "run_cap": args.run_cap}
    content = sweep_config(search, name=args.name or args.out.stem, **settings)
    logger = check(search)["logger"]
    command = shlex.join(["smd", "sweep", *args.overrides, "--metric", args.metric, "--method", args.method])
    write_text(args.out, sweep_text(content, command))
    print(args.out)
    project = f"--project {logger['project']} " + (f"--entity {logger['entity']} " if logger["entity"] else "")
    print(f"start it:  wandb sweep {project}{args.out}", file=sys.stderr)
    print("then, on each machine, in the repository:  wandb agent ENTITY/PROJECT/SWEEP_ID", file=sys.stderr)
    return 0
