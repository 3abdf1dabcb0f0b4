"""`smd lm-eval`: lm-evaluation-harness's own command with the model `sm_diffusion` known to it."""

from __future__ import annotations

import argparse
import os
import sys

from sm_diffusion.types import UserError

HELP = "lm-evaluation-harness with the model sm_diffusion: smd lm-eval -- ITS OPTIONS"
EXAMPLES = """
smd lm-eval -- run --model sm_diffusion --model_args pretrained=last.ckpt --tasks arc_easy --batch_size 16
smd lm-eval -- run --model sm_diffusion --model_args pretrained=last.ckpt --tasks mine --include_path tasks/ --limit 10
smd lm-eval -- run ... --use_cache cache/mine      # an interrupted run goes on where it stopped
smd lm-eval -- ls tasks
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="-- OPTIONS", help="of lm-eval, after a --")


def run(args: argparse.Namespace) -> int:
    options = args.options[1:] if args.options[:1] == ["--"] else list(args.options)
    if not options:
        raise UserError("smd lm-eval: no options; write for example: smd lm-eval -- run --model sm_diffusion ...")
    import sm_diffusion
    from sm_diffusion.evaluation.harness.adapter import register

    register(sm_diffusion.load)
    before = sys.argv
    sys.argv = ["lm-eval", *with_device(options)]
    try:
        from lm_eval.__main__ import cli_evaluate

        cli_evaluate()
    except SystemExit as stop:  # argparse's
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = before
    return 0


def with_device(options: list[str]) -> list[str]:
    """lm_eval hands out cuda:0 even where there is none: without a GPU the device is the CPU, unless it was given."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    given = any(option.split("=")[0] in ("--device", "-h", "--help") for option in options)
    if given or options[0] in ("ls", "validate"):
        return options
    import torch

    return options if torch.cuda.is_available() else [*options, "--device", "cpu"]
