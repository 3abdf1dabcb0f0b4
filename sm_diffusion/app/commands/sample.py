"""Texts drawn from a model, shown as they are denoised where the output is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sm_diffusion.app.model import Model
    from sm_diffusion.sampling import Canvas, Sampler, SamplerOutput
    from sm_diffusion.sampling.trajectory import Frame


def draw_texts(
    model: Model, rows: Sequence[Sequence[int]], sampler: Sampler, *, seed: int, record: bool
) -> tuple[list[str], list[tuple[Canvas, SamplerOutput]]]:
    """(texts, what every batch was and became). rows: ids with masks where tokens are wanted.

    record: keep every step of the denoising in the outputs; without it nothing is kept of them.
    """
    texts: list[str] = []
    recorded: list[tuple[Canvas, SamplerOutput]] = []
    with Screen(model, enabled=sys.stdout.isatty()) as screen:
        for canvas, out in model.run_sampler(rows, sampler, seed=seed, record=record, observe=screen.observer):
            texts += [model.tokenizer.decode(ids) for ids in canvas.texts(out.ids_BL)]
            if record:
                recorded.append((canvas, out))
    return texts, recorded


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
