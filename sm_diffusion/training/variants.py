"""The two variants: what is thrown away by one is fed back by the other."""

from __future__ import annotations

from typing import Any

import torch

from sm_diffusion.diffusion.predictor import SoftMaskPredictor
from sm_diffusion.training.feedback_window import StepWindow
from sm_diffusion.training.module import DiffusionModule


class MDLMModule(DiffusionModule):
    """The baseline: one pass a step, no memory ("binary" in the paper)."""

    def feedback(self, coin: float) -> bool:
        return False

    def scalars(self) -> dict[str, torch.Tensor]:
        return {}


class SoftMaskedModule(DiffusionModule):
    """With probability p_sm a training step spends a first pass, whose prediction softens the masks of the second.

    window: the steps this holds for; outside of it every step is plain. Validation always spends both passes.
    """

    def __init__(
        self, *, predictor: SoftMaskPredictor, p_sm: float, window: StepWindow | None = None, **shared: Any
    ) -> None:
        super().__init__(predictor=predictor, **shared)
        self.p_sm = p_sm
        self.window = window or StepWindow()

    def feedback(self, coin: float) -> bool:
        return coin < self.p_sm and self.global_step in self.window

    def scalars(self) -> dict[str, torch.Tensor]:
        assert isinstance(self.predictor, SoftMaskPredictor)
        soft_mask = self.predictor.soft_mask
        return {"omega/s": soft_mask.omega_s, "omega/a": soft_mask.omega_a, "omega/b": soft_mask.omega_b}
