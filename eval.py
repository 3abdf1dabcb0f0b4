"""Evaluate a checkpoint.

    python eval.py checkpoint=runs/quickstart/binary/checkpoints/last.ckpt
    python eval.py checkpoint=published.ckpt model=dit_169m data=text_files 'data.paths=[texts]'
"""

from typing import Any

from sm_diffusion.config.launch import launch
from sm_diffusion.config.root import EvalConfig


def run(config: EvalConfig) -> dict[str, Any]:
    from sm_diffusion.app.evaluate import evaluate  # heavy: a mistyped key is reported before it

    return evaluate(config)


if __name__ == "__main__":
    launch("eval", run)
