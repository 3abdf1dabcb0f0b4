"""The authors' transparency_config.json: read, written back, and refused with one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sm_diffusion.denoisers.adapters import transparency
from sm_diffusion.denoisers.adapters.transparency import TransparencyConfig, describe
from sm_diffusion.diffusion.soft_mask import (
    ConstantStrength,
    FullVocabularySoftMask,
    LinearStrength,
    SoftMask,
    StepwiseStrength,
)
from sm_diffusion.types import UserError

# The example of the authors' README, word for word.
PUBLISHED = """{
    "transparency_alg": "mixinputs_with_topk",
    "transparency_scale": 0.25,
    "transparency_centre": -1,
    "transparency_steepness": 5,
    "mixinputs_k": 1,
    "mixture_temp": 1.0,
    "transparency_scheduling": "none"
}"""
KEYS = json.loads(PUBLISHED)


def write(folder: Path, text: str) -> Path:
    (folder / transparency.FILE_NAME).write_text(text)
    return folder


def test_the_published_example(tmp_path: Path) -> None:
    config = transparency.read(write(tmp_path, PUBLISHED))
    head = config.soft_mask()
    assert isinstance(head, SoftMask)
    assert head.top_k == 1
    # Effective values, not raw ones, and without the soft mask's own 1e-6.
    assert (head.omega_s.item(), head.omega_a.item(), head.omega_b.item()) == pytest.approx((0.25, 5, -1), rel=1e-7)
    assert isinstance(config.strength(), ConstantStrength)
    transparency.write(config, tmp_path)
    assert json.loads((tmp_path / transparency.FILE_NAME).read_text()) == KEYS


def test_other_kinds(tmp_path: Path) -> None:
    assert transparency.read(write(tmp_path, '{"transparency_alg": "none"}')).soft_mask() is None
    transparency.write(describe(None), tmp_path)
    assert json.loads((tmp_path / transparency.FILE_NAME).read_text()) == {"transparency_alg": "none"}
    tempered = TransparencyConfig.parse(KEYS | {"transparency_alg": "mixinputs_with_temp", "mixture_temp": 0.7}, "x")
    head = tempered.soft_mask()
    assert isinstance(head, FullVocabularySoftMask)
    assert head.temperature.item() == pytest.approx(0.7, rel=1e-6)
    assert describe(head).mixture_temp == head.temperature.item()
    linear = TransparencyConfig.parse(KEYS | {"transparency_scheduling": "linear"}, "x")
    assert isinstance(linear.strength(), LinearStrength)
    stepwise = TransparencyConfig.parse(KEYS | {"transparency_scheduling": "stepwise"}, "x")
    assert isinstance(stepwise.strength(), StepwiseStrength)


def test_a_scale_of_zero_works(tmp_path: Path) -> None:
    """The authors' code crashes there."""
    head = TransparencyConfig.parse(KEYS | {"transparency_scale": 0}, "x").soft_mask()
    assert head is not None
    assert head.omega_s.item() == pytest.approx(1e-6)


def test_omegas_survive_a_round_trip(tmp_path: Path) -> None:
    head = SoftMask(top_k=3, omega_s=0.3137, omega_a=6.66, omega_b=-0.7512)
    transparency.write(describe(head), tmp_path)
    again = transparency.read(tmp_path).soft_mask()
    assert again is not None
    for name in ("omega_s", "omega_a", "omega_b"):
        assert getattr(again, name).item() == pytest.approx(getattr(head, name).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "expected a JSON object, found list"),
        ("{}", "missing transparency_alg; missing transparency_scale"),
        (json.dumps(KEYS | {"slerp": 1}), "unknown slerp"),
        (json.dumps(KEYS | {"transparency_scale": "0.2"}), "transparency_scale='0.2' is not of type float"),
        (json.dumps(KEYS | {"transparency_scale": True}), "transparency_scale=True is not of type float"),
        (json.dumps(KEYS | {"mixinputs_k": 1.5}), "mixinputs_k=1.5 is not of type int"),
        (json.dumps(KEYS | {"transparency_scale": 1.5}), r"transparency_scale=1.5 outside \[0, 1\]"),
        (json.dumps(KEYS | {"transparency_scale": float("nan")}), "transparency_scale=nan outside"),
        (json.dumps(KEYS | {"transparency_centre": 1}), "transparency_centre=1 above 0"),
        (json.dumps(KEYS | {"transparency_steepness": -1}), "transparency_steepness=-1 below 0"),
        (json.dumps(KEYS | {"mixinputs_k": 0}), "mixinputs_k=0 below 1"),
        (json.dumps(KEYS | {"mixture_temp": 0}), "mixture_temp=0 is not > 0"),
        (json.dumps(KEYS | {"transparency_alg": "mix"}), "transparency_alg=mix: choose mixinputs_with_topk"),
        (json.dumps(KEYS | {"transparency_scheduling": "cosine"}), "scheduling=cosine: choose none, linear, stepwise"),
    ],
)
def test_malformed(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        transparency.read(write(tmp_path, text))
    assert "\n" not in str(caught.value)
    assert transparency.FILE_NAME in str(caught.value)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        transparency.read(tmp_path)
