"""`smd chat`: talk to a model in the terminal, or through a pipe with one message a line."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from sm_diffusion.app.commands.talk import TalkSettings

HELP = "talk to a model: any checkpoint, adapter or model folder"
EXAMPLES = """
smd chat runs/NAME/checkpoints/last.ckpt
smd chat full-model --system "Answer in one sentence." --nfe 0.5 --show-denoising
smd chat Dream-org/Dream-v0-Instruct-7B --length 256 < questions.txt      # a message a line
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from sm_diffusion.app.commands.talk import DEFAULT_LENGTH

    parser.add_argument("model", help="a checkpoint, an adapter or model folder, or a hub id (owner/name@commit)")
    parser.add_argument("--system", metavar="TEXT", help="system prompt")
    parser.add_argument("--length", type=int, metavar="N", help=f"tokens of an answer, default {DEFAULT_LENGTH}")
    parser.add_argument("--sampler", default="confidence_entropy", metavar="NAME", help="of conf/sampler")
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps of an answer")
    parser.add_argument("--nfe", type=float, default=1.0, metavar="X", help="or steps a token, default 1")
    parser.add_argument("--temperature", type=float, metavar="T", help="0: most probable; default: the sampler's")
    parser.add_argument("--top-p", type=float, metavar="P", help="nucleus; default: the sampler's")
    parser.add_argument("--seed", type=int, default=1, help="default 1; the same messages get the same answers")
    parser.add_argument("--show-denoising", action="store_true", help="show every step (through a pipe: on stderr)")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="of a checkpoint, default ema")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda; default auto")


def settings_of(args: argparse.Namespace) -> TalkSettings:
    """The options of a conversation, as they were given."""
    from sm_diffusion.app.commands.talk import TalkSettings

    return TalkSettings(
        system=args.system,
        length=args.length,
        sampler=args.sampler,
        steps=args.steps,
        nfe=args.nfe,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
        show=args.show_denoising,
    )


def run(args: argparse.Namespace) -> int:
    if not args.nfe > 0:
        raise UserError(f"--nfe {args.nfe:g}: must be > 0")
    if args.steps is not None and args.nfe != 1.0:
        raise UserError(f"--steps {args.steps} --nfe {args.nfe:g}: give one of them")
    from sm_diffusion.app.commands.talk import Talk, converse
    from sm_diffusion.app.open_model import load  # slow: after the cheap checks

    model = load(args.model, args.weights, args.device)
    converse(Talk(model, settings_of(args)), args.model)
    return 0
