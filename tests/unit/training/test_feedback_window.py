"""Soft-masking in a part of the training steps, and in a part of the decoding: which parts there are."""

from __future__ import annotations

import pytest

from sm_diffusion.app.validate import validate_train
from sm_diffusion.config.compose import compose_config
from sm_diffusion.diffusion.soft_mask import WindowStrength
from sm_diffusion.sampling import Ancestral, SamplerSettings
from sm_diffusion.training.feedback_window import StepWindow
from sm_diffusion.types import UserError


def test_step_window() -> None:
    assert [step for step in range(6) if step in StepWindow(2, 4)] == [2, 3]
    assert [step for step in range(4) if step in StepWindow(2)] == [2, 3]
    assert all(step in StepWindow() for step in (0, 10**9))
    assert StepWindow(2, 4).share(10) == 0.2
    assert StepWindow(2, 400).share(10) == 0.8
    assert StepWindow(20).share(10) == 0.0


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("variant.start_step=-1", r"variant\.start_step=-1: must be >= 0"),
        ("variant.stop_step=0", r"variant\.stop_step=0: must be greater than variant\.start_step=0"),
        ("variant.start_step=10000", r"variant\.start_step=10000: the run ends at trainer\.max_steps=10000"),
    ],
)
def test_wrong_step_windows(override: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        validate_train(compose_config("train", [override]))


def test_extra_passes_that_a_window_leaves() -> None:
    config = compose_config("train", ["variant.stop_step=2500", "variant.p_sm=0.5", "trainer.max_steps=10000"])
    assert config.variant.extra_pass_share(config.trainer.max_steps) == 0.125
    assert compose_config("train", ["variant=mdlm"]).variant.extra_pass_share(100) == 0.0


def test_decode_window() -> None:
    early = SamplerSettings(order=Ancestral(), strength="window", strength_until=0.5).build_strength()
    assert [early(t) for t in (1.0, 0.75, 0.5, 0.1)] == [1.0, 1.0, 0.0, 0.0]
    late = WindowStrength(t_from=0.5, t_until=0.0)
    assert [late(t) for t in (1.0, 0.5, 1e-5)] == [0.0, 1.0, 1.0]
    with pytest.raises(UserError, match=r"sampler\.strength_until=0\.5, sampler\.strength_from=0\.5: must satisfy"):
        SamplerSettings(order=Ancestral(), strength="window", strength_until=0.5, strength_from=0.5).build_strength()
    with pytest.raises(ValueError, match="t_until"):
        WindowStrength(t_from=0.0, t_until=0.0)
