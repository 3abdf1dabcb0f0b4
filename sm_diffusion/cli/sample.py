"""`smd sample`: texts from a checkpoint."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from sm_diffusion.types import UserError

HELP = "generate text: from nothing, from a prompt, or into the blanks of a text"
EXAMPLES = """
smd sample runs/quickstart/sm_updates/checkpoints/last.ckpt --num 4 --steps 64
smd sample last.ckpt --prompt "the old man" --sampler remdm_cap sampler.eta=0.02
smd sample last.ckpt --infill "the [MASK][MASK][MASK] sat on the mat" --json run.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    opens = "a checkpoint, a run, adapter or model folder, or a hub id (owner/name@commit)"
    parser.add_argument("checkpoint", help=opens)
    parser.add_argument("overrides", nargs="*", metavar="sampler.KEY=VALUE", help="further settings of the sampler")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="text to go on from; may be repeated")
    parser.add_argument("--infill", action="append", metavar="TEXT", help="text with [MASK] for each token to fill in")
    parser.add_argument("--num", type=int, default=1, metavar="N", help="texts for each prompt, default 1")
    parser.add_argument("--length", type=int, metavar="L", help="tokens, prompt included; default: the model's")
    parser.add_argument("--sampler", default="ancestral", metavar="NAME", help="of conf/sampler, such as remdm_cap")
    parser.add_argument("--steps", type=int, metavar="N", help="default: the sampler's")
    parser.add_argument("--temperature", type=float, metavar="T", help="0: most probable; default: the sampler's")
    parser.add_argument("--top-p", type=float, metavar="P", help="nucleus; default: the sampler's")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="record every step, for: smd view FILE")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="default ema")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda; default auto")


def run(args: argparse.Namespace) -> int:
    wrong = [text for text in args.overrides if not text.startswith("sampler.")]
    if wrong:
        raise UserError(f"{wrong[0]}: not understood; further settings are written sampler.KEY=VALUE")
    for text in args.infill or []:
        if "[MASK]" not in text:
            raise UserError(f"--infill {text!r}: nothing to fill in; put [MASK] where tokens are wanted")
    for text in args.prompt or []:
        if "[MASK]" in text:
            raise UserError(f"--prompt {text!r}: holds the mask token; use --infill to fill in blanks")
    from sm_diffusion.app.commands.recording import trajectory_json
    from sm_diffusion.app.commands.sample import draw_texts
    from sm_diffusion.app.model import named_sampler  # slow: after the cheap checks
    from sm_diffusion.app.open_model import load
    from sm_diffusion.files import write_text

    settings = named_sampler(args.sampler, args.overrides).with_overrides(
        steps=args.steps, temperature=args.temperature, top_p=args.top_p
    )
    model = load(args.checkpoint, args.weights, args.device)
    prompts = [*(args.prompt or []), *(args.infill or [])] or None
    rows = model.rows(prompts, num_samples=args.num, length=args.length)
    record = args.json is not None
    texts, recorded = draw_texts(model, rows, model.sampler(settings), seed=args.seed, record=record)
    for index, text in enumerate(texts):
        print(text if len(texts) == 1 else f"--- {index + 1}\n{text}")
    if record:
        recording = trajectory_json(model, settings, recorded, seed=args.seed, checkpoint=args.checkpoint)
        write_text(args.json, json.dumps(recording, ensure_ascii=False, separators=(",", ":")) + "\n")
        print(f"written to {args.json}; look at it with: smd view {args.json}", file=sys.stderr)
    return 0
