"""`smd sweep`: a W&B sweep file from a Hydra search space, checked against the configuration before it is written."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sm_diffusion.files import write_text
from sm_diffusion.reproduction.collect import is_higher_better
from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from sm_diffusion.config.search_space import Search

HELP = "write a W&B sweep file from a Hydra search space; agents run it"
EXAMPLES = """
smd sweep experiments=quickstart/sm_updates 'soft_mask.top_k=choice(1,3,5)' 'variant.p_sm=interval(0.5,1.0)'
smd sweep experiments=quickstart/sm_updates 'optim.lr=tag(log,interval(1e-4,1e-2))' --metric val/ppl -o sweep.yaml
smd sweep 'optim.lr=1e-4,1e-3' 'seed=range(1,4)' --method grid
"""
METHODS = ("bayes", "random", "grid")
# What train.py logs; a sweep over another name would never see a value.
METRICS = (
    *(f"val/{name}" for name in ("nll", "ppl", "bits_per_token", "bits_per_byte")),
    "train/loss",
    "compute/tokens_per_second",
)
OWN_KEYS = ("name", "output_dir", "logger", "logger.wandb", "overwrite", "ckpt_path")
# Each run of an agent gets a name and so a folder of its own. The agent sets the variable; Hydra reads it.
RUN_NAME = "name={folder}/${{oc.env:WANDB_RUN_ID}}"


def sweep_config(
    search: Search, *, method: str, metric: str, goal: str, name: str, run_cap: int | None
) -> dict[str, Any]:
    """The content of the sweep file.

    Raises UserError for a search that W&B cannot carry out: nothing searched, an interval in a grid.
    """
    if not search.parameters:
        raise UserError("nothing to search: give at least one key=choice(...), key=range(...) or key=interval(...)")
    intervals = [item.key for item in search.parameters if item.is_interval]
    if method == "grid" and intervals:
        raise UserError(
            f"--method grid tries every value, and {intervals[0]} is an interval; list values, or take bayes"
        )
    content: dict[str, Any] = {"name": name, "program": "train.py", "method": method}
    content["metric"] = {"name": metric, "goal": goal}
    content |= {"run_cap": run_cap} if run_cap is not None else {}
    content["parameters"] = {item.key: item.spec for item in search.parameters}
    fixed = [*search.fixed, "logger=wandb", RUN_NAME.format(folder=f"sweeps/{name}")]
    content["command"] = ["${env}", "${interpreter}", "${program}", *fixed, "${args_no_hyphens}"]
    return content


def check(search: Search) -> Mapping[str, Any]:
    """Compose and validate every configuration that `search.to_check` lists; the first one.

    Raises UserError naming the overrides that were refused.
    """
    from sm_diffusion.app.compose import composed

    first: Mapping[str, Any] | None = None
    for overrides in search.to_check():
        try:
            found = composed("train", overrides)
        except UserError as error:
            searched = " ".join(overrides[len(search.fixed) :]) or "the fixed settings"
            hint = "; for whole numbers write int(interval(a,b))" if "to Integer" in str(error) else ""
            named = "" if str(error).startswith(searched) else f"{searched}: "
            raise UserError(f"{named}{error}{hint}") from None
        first = first or found
    assert first is not None
    return first


def sweep_text(content: Mapping[str, Any], command: str) -> str:
    text: str = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=110)
    return f"# Made by: {command}\n{text}"


def refuse_own_keys(words: Sequence[str]) -> None:
    """Keys that the sweep sets for each run."""
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if key in OWN_KEYS:
            raise UserError(f"{word}: set for each run of the sweep; leave it out")


def add_arguments(parser: argparse.ArgumentParser) -> None:
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

    if args.run_cap is not None and args.run_cap < 1:
        raise UserError(f"--run-cap {args.run_cap}: must be >= 1")
    refuse_own_keys(args.overrides)
    search = parse_search(args.overrides)
    goal = args.goal or ("maximize" if is_higher_better(args.metric) else "minimize")
    name = args.name or args.out.stem
    settings = {"method": args.method, "metric": args.metric, "goal": goal, "run_cap": args.run_cap}
    content = sweep_config(search, name=name, **settings)
    logger = check(search)["logger"]
    command = shlex.join(["smd", "sweep", *args.overrides, "--metric", args.metric, "--method", args.method])
    write_text(args.out, sweep_text(content, command))
    print(args.out)
    project = f"--project {logger['project']} " + (f"--entity {logger['entity']} " if logger["entity"] else "")
    print(f"start it:  wandb sweep {project}{args.out}", file=sys.stderr)
    print("then, on each machine, in the repository:  wandb agent ENTITY/PROJECT/SWEEP_ID", file=sys.stderr)
    return 0
