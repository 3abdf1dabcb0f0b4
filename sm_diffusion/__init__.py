"""Soft-masked diffusion language models: training, sampling and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sm_diffusion.app.model import Model

__version__ = "0.1.0"


def load(path: str | Path, weights: str = "ema", device: str = "auto", overrides: Sequence[str] = ()) -> Model:
    """A trained model to generate with; see `sm_diffusion.app.open_model.load`.

    import sm_diffusion

    model = sm_diffusion.load("runs/quickstart/sm_updates/checkpoints/last.ckpt")
    print(model.generate(num_samples=2, steps=64, seed=1))
    print(model.generate(["the cat [MASK][MASK][MASK] on the mat"]))
    """
    from sm_diffusion.app.open_model import load as load_model  # torch and the rest, only when a model is wanted

    return load_model(path, weights, device, overrides)
