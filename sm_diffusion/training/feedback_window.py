"""Which optimizer steps may spend the extra pass: soft-masking switched on or off part-way."""

from __future__ import annotations

from dataclasses import dataclass

from sm_diffusion.types import UserError


@dataclass(frozen=True)
class StepWindow:
    """Optimizer steps start <= step < stop; stop None: to the end. UserError unless 0 <= start < stop."""

    start: int = 0
    stop: int | None = None

    def __post_init__(self) -> None:
        if self.start < 0:
            raise UserError(f"variant.start_step={self.start}: must be >= 0")
        if self.stop is not None and self.stop <= self.start:
            raise UserError(
                f"variant.stop_step={self.stop}: must be greater than variant.start_step={self.start}; "
                "for a run without soft-masking set variant=mdlm"
            )

    def __contains__(self, step: int) -> bool:
        return self.start <= step and (self.stop is None or step < self.stop)

    def share(self, num_steps: int) -> float:
        """Of the first `num_steps` steps, how many lie inside, in [0, 1]."""
        stop = num_steps if self.stop is None else min(self.stop, num_steps)
        return max(0, stop - self.start) / num_steps
