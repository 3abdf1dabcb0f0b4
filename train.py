"""Train a masked diffusion language model, plain or soft-masked.

    python train.py data=python_text variant=mdlm name=baseline
    python train.py experiments=quickstart/pretrain
    python train.py -m soft_mask.omega_s=0.1,0.27 seed=1,2      # a sweep

`smd config` prints the resolved configuration, `smd plan` what it costs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sm_diffusion import interrupts

if TYPE_CHECKING:
    from sm_diffusion.config.root import TrainConfig


def run(config: TrainConfig) -> float:
    from sm_diffusion.app.train import train  # heavy: a mistyped key is reported before it
    from sm_diffusion.reproduction.report.plots import save_run_plots

    interrupts.unwind()
    return float(train(config, draw=save_run_plots)["metrics"]["val/nll"])  # what a sweep minimises


def check(config: TrainConfig) -> None:
    from sm_diffusion.app.compose import check_train

    check_train(config)


if __name__ == "__main__":
    interrupts.listen()
    from sm_diffusion.config.launch import launch

    launch("train", run, check)
