"""`smd sample`: texts from a checkpoint, shown as they are denoised where the output is a terminal."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sm_diffusion.files import write_text
from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from sm_diffusion.app.model import Model
    from sm_diffusion.sampling import Canvas, SamplerOutput
    from sm_diffusion.sampling.trajectory import Frame

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
    from sm_diffusion.app.model import named_sampler  # slow: after the cheap checks
    from sm_diffusion.app.open_model import load
    from sm_diffusion.app.recording import trajectory_json

    settings = named_sampler(args.sampler, args.overrides).with_overrides(
        steps=args.steps, temperature=args.temperature, top_p=args.top_p
    )
    model = load(args.checkpoint, args.weights, args.device)
    prompts = [*(args.prompt or []), *(args.infill or [])] or None
    rows = model.rows(prompts, num_samples=args.num, length=args.length)
    texts: list[str] = []
    recorded: list[tuple[Canvas, SamplerOutput]] = []
    with Screen(model, enabled=sys.stdout.isatty()) as screen:
        batches = model.run_sampler(
            rows, model.sampler(settings), seed=args.seed, record=args.json is not None, observe=screen.observer
        )
        for canvas, out in batches:
            texts += [model.tokenizer.decode(ids) for ids in canvas.texts(out.ids_BL)]
            if args.json is not None:
                recorded.append((canvas, out))
    for index, text in enumerate(texts):
        print(text if len(texts) == 1 else f"--- {index + 1}\n{text}")
    if args.json is not None:
        recording = trajectory_json(model, settings, recorded, seed=args.seed, checkpoint=args.checkpoint)
        write_text(args.json, json.dumps(recording, ensure_ascii=False, separators=(",", ":")) + "\n")
        print(f"written to {args.json}; look at it with: smd view {args.json}", file=sys.stderr)
    return 0


class Screen:
    """Shows the first text of a batch, renewed at every step; nothing where the output is not a terminal."""

    def __init__(self, model: Model, *, enabled: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self._model = model
        self._live = Live(console=Console(), refresh_per_second=20, transient=True) if enabled else None

    @property
    def observer(self) -> Callable[[Frame], None] | None:
        return None if self._live is None else self._show

    def __enter__(self) -> Screen:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def _show(self, frame: Frame) -> None:
        from rich.text import Text

        from sm_diffusion.sampling.trajectory import STATES

        styles = {"given": "bold", "drawn": "green", "remasked": "red", "soft": "dim cyan", "masked": "dim"}
        text = Text()
        mask_id = self._model.tokenizer.mask_id
        pairs = zip(frame.ids_BL[0].tolist(), frame.state_BL[0].tolist(), strict=True)
        for position, (token, code) in enumerate(pairs):
            state = STATES[code]
            if state == "padding":
                continue
            shown = "░" if token == mask_id else self._model.tokenizer.decode([token])
            if state == "soft" and frame.blend_ids_BLK is not None:
                shown = self._model.tokenizer.decode([int(frame.blend_ids_BLK[0, position, 0])])
            text.append(shown, styles.get(state, ""))
        left = int((frame.ids_BL[0] == mask_id).sum())
        text.append(f"\nstep {frame.step}, {left} masks left", "dim")
        assert self._live is not None
        self._live.update(text, refresh=True)
