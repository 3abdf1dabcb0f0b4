"""Evaluate a checkpoint.

    python eval.py checkpoint=runs/quickstart/binary/checkpoints/last.ckpt
    python eval.py checkpoint=published.ckpt model=dit_169m data=text_files 'data.paths=[texts]'
"""

from sm_diffusion.config.programs import evaluate
from sm_diffusion.config.store import launch

if __name__ == "__main__":
    launch("eval", evaluate)
