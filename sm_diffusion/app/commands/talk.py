"""A conversation with a model in the terminal, or through a pipe with one message a line."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from rich.text import Text

    from sm_diffusion.app.model import Model
    from sm_diffusion.sampling.trajectory import Frame

COMMANDS = "/reset forgets the conversation, /exit (or Ctrl-D) ends it, Ctrl-C stops an answer"
DEFAULT_LENGTH = 256


@dataclass(frozen=True, kw_only=True)
class TalkSettings:
    """How answers are drawn.

    system: the system prompt. length: tokens of an answer; None: DEFAULT_LENGTH, at most half of the longest text.
    sampler: of conf/sampler. steps: denoising steps of an answer, or nfe: steps a token. temperature, top_p: None for
    the sampler's. seed: the same messages get the same answers. show: every step of the denoising.
    """

    system: str | None = None
    length: int | None = None
    sampler: str = "confidence_entropy"
    steps: int | None = None
    nfe: float = 1.0
    temperature: float | None = None
    top_p: float | None = None
    seed: int = 1
    show: bool = False


def converse(talk: Talk, name: str) -> None:
    """Answer what comes on standard input until it ends. name: of the model, for a terminal."""
    model = talk.model
    terminal = sys.stdin.isatty()
    if terminal:
        print(f"{name}: {model.variant}, texts of {model.length} tokens, answers of {talk.length}.")
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

    def __init__(self, model: Model, settings: TalkSettings) -> None:
        self.length = min(DEFAULT_LENGTH, max(1, model.length // 2)) if settings.length is None else settings.length
        if not 0 < self.length < model.length:
            raise UserError(
                f"--length {self.length}: the model takes {model.length} tokens, the conversation included: "
                f"give 1 to {model.length - 1}"
            )
        if settings.system is not None and model.chat is None:
            raise UserError("--system: the model has no chat template (it was trained on plain text); leave it out")
        self.model = model
        self.seed = settings.seed
        self.show = settings.show
        self.stop_ids = model.stop_ids
        self.system = [] if settings.system is None else [{"role": "system", "content": settings.system}]
        self.sampler = model.answer_sampler(
            settings.sampler,
            new_tokens=self.length,
            nfe=settings.nfe,
            steps=settings.steps,
            temperature=settings.temperature,
            top_p=settings.top_p,
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
