"""What a user chooses as `variant`: plain MDLM, or soft-masking and how often a training step pays for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sm_diffusion.diffusion.contracts import Denoiser
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.soft_mask import SoftMaskSettings
from sm_diffusion.registry import name_of, register
from sm_diffusion.training.feedback_window import StepWindow
from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from sm_diffusion.training.module import DiffusionModule


class VariantSettings(ABC):
    """What happens to the prediction of a position that stays masked."""

    @property
    def name(self) -> str:
        """What it is registered as."""
        return name_of("variant", type(self))

    @property
    @abstractmethod
    def feeds_back(self) -> bool:
        """Whether a soft mask belongs to the model."""

    @abstractmethod
    def build_predictor(self, denoiser: Denoiser, soft_mask: SoftMaskSettings, *, mask_id: int) -> Predictor:
        """The network with what it remembers, its omegas freshly initialised."""

    @abstractmethod
    def build_module(self, predictor: Predictor, **shared: Any) -> DiffusionModule:
        """The LightningModule that trains it. shared: what every `DiffusionModule` takes."""

    @abstractmethod
    def extra_pass_share(self, num_steps: int) -> float:
        """Expected extra first passes a training step of a run of `num_steps`, in [0, 1]."""

    @abstractmethod
    def problems_in_run(self, num_steps: int) -> Iterator[str]:
        """What is wrong with the settings in a run of `num_steps`."""


@register("variant", "mdlm")
@dataclass(frozen=True, kw_only=True)
class MDLMVariant(VariantSettings):
    """The prediction is thrown away."""

    @property
    def feeds_back(self) -> bool:
        return False

    def build_predictor(self, denoiser: Denoiser, soft_mask: SoftMaskSettings, *, mask_id: int) -> Predictor:
        return HardMaskPredictor(denoiser, mask_id=mask_id)

    def build_module(self, predictor: Predictor, **shared: Any) -> DiffusionModule:
        from sm_diffusion.training.variants import MDLMModule  # imports Lightning

        return MDLMModule(predictor=predictor, **shared)

    def extra_pass_share(self, num_steps: int) -> float:
        return 0.0

    def problems_in_run(self, num_steps: int) -> Iterator[str]:
        return iter(())


@register("variant", "soft_masked")
@dataclass(frozen=True, kw_only=True)
class SoftMaskedVariant(VariantSettings):
    """The prediction is fed back as a soft mask."""

    p_sm: float = 0.8  # probability that a training step spends the extra first pass
    start_step: int = 0  # optimizer steps before this one are plain MDLM steps
    stop_step: int | None = None  # from this optimizer step on, too; null: never

    @property
    def feeds_back(self) -> bool:
        return True

    @property
    def window(self) -> StepWindow:
        """The optimizer steps that may spend the extra pass."""
        return StepWindow(self.start_step, self.stop_step)

    def build_predictor(self, denoiser: Denoiser, soft_mask: SoftMaskSettings, *, mask_id: int) -> Predictor:
        return SoftMaskPredictor(denoiser, soft_mask.build(), mask_id=mask_id, mixing=soft_mask.build_mixing())

    def build_module(self, predictor: Predictor, **shared: Any) -> DiffusionModule:
        from sm_diffusion.training.variants import SoftMaskedModule  # imports Lightning

        assert isinstance(predictor, SoftMaskPredictor)
        return SoftMaskedModule(predictor=predictor, p_sm=self.p_sm, window=self.window, **shared)

    def extra_pass_share(self, num_steps: int) -> float:
        return self.p_sm * self.window.share(num_steps)

    def problems_in_run(self, num_steps: int) -> Iterator[str]:
        if not 0 <= self.p_sm <= 1:
            yield f"variant.p_sm={self.p_sm}: must lie in [0, 1]; the paper's best is 0.8"
        try:
            StepWindow(self.start_step, self.stop_step)
        except UserError as error:
            yield str(error)
        if self.start_step >= num_steps > 0:
            yield (
                f"variant.start_step={self.start_step}: the run ends at trainer.max_steps={num_steps}, so soft-masking "
                "would never start; set it lower, or variant=mdlm"
            )
