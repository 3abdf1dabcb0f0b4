"""`smd chat`: talk to a model in the terminal, or through a pipe with one message a line."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from rich.text import Text

    from sm_diffusion.app.model import Model
    from sm_diffusion.sampling.trajectory import Frame

HELP = "talk to a model: any checkpoint, adapter or model folder"
EXAMPLES = """
smd chat runs/NAME/checkpoints/last.ckpt
smd chat full-model --system "Answer in one sentence." --nfe 0.5 --show-denoising
smd chat Dream-org/Dream-v0-Instruct-7B --length 256 < questions.txt      # a message a line
"""
COMMANDS = "/reset forgets the conversation, /exit (or Ctrl-D) ends it, Ctrl-C stops an answer"
DEFAULT_LENGTH = 256


def add_arguments(parser: argparse.ArgumentParser) -> None:
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


def run(args: argparse.Namespace) -> int:
    if not args.nfe > 0:
        raise UserError(f"--nfe {args.nfe:g}: must be > 0")
    if args.steps is not None and args.nfe != 1.0:
        raise UserError(f"--steps {args.steps} --nfe {args.nfe:g}: give one of them")
    from sm_diffusion.app.open_model import load  # slow: after the cheap checks

    model = load(args.model, args.weights, args.device)
    talk = Talk(model, args)
    terminal = sys.stdin.isatty()
    if terminal:
        print(f"{args.model}: {model.variant}, texts of {model.length} tokens, answers of {talk.length}.")
        print(COMMANDS + ".")
        if model.chat is None:
            print("It was trained on plain text: a message is a text to go on from, nothing is remembered.")
    for message in _messages(terminal):
        if not message.strip():
            continue
        if message.strip() in ("/exit", "/quit"):
            break
        if message.strip() == "/reset":
            talk.reset()
            _notice("the conversation starts anew")
        elif message.strip().startswith("/"):
            _notice(f"{message.strip().split()[0]}: no such command; {COMMANDS}")
        else:
            _answer(talk, message, terminal)
    return 0


def _answer(talk: Talk, message: str, terminal: bool) -> None:
    try:
        text = talk.answer(message)
        print(("model> " if terminal else "") + (printable(text) if sys.stdout.isatty() else text), flush=True)
    except UserError as error:
        if not terminal:
            raise
        _notice(str(error))
    except KeyboardInterrupt:
        if not terminal:
            raise
        print()
        _notice("stopped; the message is forgotten")


def _messages(terminal: bool) -> Iterator[str]:
    if not terminal:
        for line in sys.stdin:
            yield line.rstrip("\n")
        return
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 - history and editing for input()
    while True:
        try:
            yield input("you> ")
        except EOFError:
            print()
            return


def printable(text: str) -> str:
    """For a terminal, which would obey the control characters that a model writes."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}" for char in text)


def _notice(text: str) -> None:
    print(f"({text})", file=sys.stderr, flush=True)


class Talk:
    """A conversation: messages so far, and how answers are drawn."""

    def __init__(self, model: Model, args: argparse.Namespace) -> None:
        self.length = min(DEFAULT_LENGTH, max(1, model.length // 2)) if args.length is None else args.length
        if not 0 < self.length < model.length:
            raise UserError(
                f"--length {self.length}: the model takes {model.length} tokens, the conversation included: "
                f"give 1 to {model.length - 1}"
            )
        if args.system is not None and model.chat is None:
            raise UserError("--system: the model has no chat template (it was trained on plain text); leave it out")
        self.model = model
        self.seed = args.seed
        self.show = args.show_denoising
        self.stop_ids = model.stop_ids
        self.system = [] if args.system is None else [{"role": "system", "content": args.system}]
        self.sampler = model.answer_sampler(
            args.sampler,
            new_tokens=self.length,
            nfe=args.nfe,
            steps=args.steps,
            temperature=args.temperature,
            top_p=args.top_p,
        )
        self.turns: list[dict[str, str]] = []
        self.num_answers = 0

    def reset(self) -> None:
        self.turns, self.num_answers = [], 0

    def answer(self, message: str) -> str:
        """The answer; it and the message are remembered. UserError for a message that does not fit."""
        from sm_diffusion.evaluation.generation.samples import row_seed
        from sm_diffusion.evaluation.harness.text import cut

        turns, prompt = self._prompt(message)
        row = [*prompt, *[self.model.tokenizer.mask_id] * self.length]
        seed = row_seed(self.seed, self.num_answers)
        with Denoising(self.model, len(prompt), enabled=self.show) as screen:
            ((canvas, out),) = self.model.run_sampler([row], self.sampler, seeds=[seed], observe=screen.observer)
        ids = cut(canvas.texts(out.ids_BL)[0][len(prompt) :], self.stop_ids)
        text = self.model.tokenizer.decode(ids)
        self.num_answers += 1
        if self.model.chat is not None:
            self.turns = [*turns, {"role": "assistant", "content": text}]
        return text.strip("\n")

    def _prompt(self, message: str) -> tuple[list[dict[str, str]], list[int]]:
        """Turns that fit, with the message, and their ids. The oldest exchanges are dropped first."""
        room = self.model.length - self.length
        chat, dropped = self.model.chat, 0
        turns = [*self.turns, {"role": "user", "content": message}]
        while True:
            if chat is None:
                from sm_diffusion.data.tokenizers.base import encode_piece

                prompt = encode_piece(self.model.tokenizer, message)
            else:
                prompt = chat.prompt([*self.system, *turns])
            if len(prompt) <= room:
                break
            if len(turns) == 1:
                raise UserError(
                    f"the message has {len(prompt)} tokens with its template, {room} are left beside an answer of "
                    f"{self.length}: shorten it, or give a smaller --length"
                )
            turns, dropped = turns[2:], dropped + 1
        if self.model.tokenizer.mask_id in prompt:
            raise UserError("the message holds the mask token: remove it")
        if dropped:
            asked = len(self.turns) // 2
            _notice(f"the oldest {dropped} of {asked} exchanges are forgotten: {room} tokens are the limit")
        return turns, prompt or [self.model.tokenizer.eos_id]


class Denoising:
    """Shows an answer as it is denoised: renewed in place on a terminal, one line a step elsewhere."""

    def __init__(self, model: Model, start: int, *, enabled: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self._model, self._start, self._enabled = model, start, enabled
        console = Console()
        self._live = Live(console=console, transient=True, auto_refresh=False) if console.is_terminal else None

    @property
    def observer(self) -> Callable[[Frame], None] | None:
        return self._show if self._enabled else None

    def __enter__(self) -> Denoising:
        if self._enabled and self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._enabled and self._live is not None:
            self._live.stop()

    def _show(self, frame: Frame) -> None:
        text, left = self._text(frame)
        if self._live is not None:
            text.append(f"\nstep {frame.step}, {left} masks left", "dim")
            self._live.update(text, refresh=True)
        else:
            print(f"step {frame.step:>3}, {left:>3} masks left: {text.plain!r}", file=sys.stderr, flush=True)

    def _text(self, frame: Frame) -> tuple[Text, int]:
        """The answer, a block for a mask (or, dim, what soft-masking blends in there most), and the masks left."""
        from rich.text import Text

        from sm_diffusion.sampling.trajectory import STATES

        styles = {"drawn": "green", "remasked": "red", "soft": "dim cyan", "masked": "dim"}
        tokenizer, text, left = self._model.tokenizer, Text(), 0
        ids, states = frame.ids_BL[0].tolist(), frame.state_BL[0].tolist()
        for position in range(self._start, len(ids)):
            state, shown = STATES[states[position]], "░"
            if ids[position] == tokenizer.mask_id:
                left += 1
                if state == "soft" and frame.blend_ids_BLK is not None and self._live is not None:
                    shown = tokenizer.decode([int(frame.blend_ids_BLK[0, position, 0])])
            else:
                shown = tokenizer.decode([ids[position]])
            text.append(printable(shown), styles.get(state, ""))
        return text, left
