"""`smd bench`: benchmarks that print ratios measured in one run."""

from __future__ import annotations

import argparse
import importlib
import importlib.util

HELP = "time and weigh our steps against the plain implementation, in one run"
EXAMPLES = """
smd bench train --json bench.json
smd bench train --vocab 28 --width 96 --length 64 --batch 32
smd bench sample --json bench.json
smd bench data --megabytes 10
smd bench backbone --model dream_7b --json bench.json
"""
BENCHMARKS = {
    "train": "sm_diffusion.planning.benchmarks.train",
    "sample": "sm_diffusion.planning.benchmarks.sample",
    "data": "sm_diffusion.planning.benchmarks.data",
    "backbone": "sm_diffusion.planning.benchmarks.backbone",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="benchmark", required=True, metavar="BENCHMARK")
    for name, module in BENCHMARKS.items():
        if importlib.util.find_spec(module) is not None:
            loaded = importlib.import_module(module)
            loaded.add_arguments(commands.add_parser(name, help=str(loaded.__doc__).strip().splitlines()[0]))


def run(args: argparse.Namespace) -> int:
    status: int = importlib.import_module(BENCHMARKS[args.benchmark]).run_cli(args)
    return status
