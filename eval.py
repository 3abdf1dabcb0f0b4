"""Evaluate a checkpoint.

    python eval.py checkpoint=runs/quickstart/binary/checkpoints/last.ckpt
    python eval.py checkpoint=published.ckpt model=dit_169m data=text_files 'data.paths=[texts]'
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sm_diffusion import interrupts

if TYPE_CHECKING:
    from sm_diffusion.config.root import EvalConfig


def run(config: EvalConfig) -> dict[str, Any]:
    from sm_diffusion.app.evaluate import evaluate  # heavy: a mistyped key is reported before it

    interrupts.unwind()
    return evaluate(config)


def check(config: EvalConfig) -> None:
    from sm_diffusion.app.compose import check_eval

    check_eval(config)


if __name__ == "__main__":
    interrupts.listen()
    from sm_diffusion.config.launch import launch

    launch("eval", run, check)
