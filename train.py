"""Train a masked diffusion language model, plain or soft-masked.

    python train.py data=python_text variant=mdlm name=baseline
    python train.py experiments=quickstart/pretrain
    python train.py -m soft_mask.omega_s=0.1,0.27 seed=1,2      # a sweep

`smd config` prints the resolved configuration, `smd plan` what it costs.
"""

from typing import Any

from sm_diffusion.config.schema import TrainConfig
from sm_diffusion.config.store import launch


def run(config: TrainConfig) -> dict[str, Any]:
    from sm_diffusion.config.programs import train  # heavy: a mistyped key is reported before it

    return train(config)


if __name__ == "__main__":
    launch("train", run)
