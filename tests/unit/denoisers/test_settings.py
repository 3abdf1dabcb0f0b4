"""A network that somebody else registers: composed, checked, built, noted in a checkpoint and read from it again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from sm_diffusion import registry
from sm_diffusion.app.build import build_predictor
from sm_diffusion.app.validate import validate_train
from sm_diffusion.config import nodes, store
from sm_diffusion.config.compose import compose_config, provenance, restore_train_config
from sm_diffusion.denoisers.dit.model import DiT, DiTShape
from sm_diffusion.denoisers.settings import is_told_time, label, takes_adapters, takes_packed_rows
from sm_diffusion.diffusion.contracts import Denoiser
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.types import UserError


@dataclass
class MySettings:
    width: int = 16

    def build(self, *, vocab_size: int, mask_id: int) -> Denoiser:
        shape = DiTShape(vocab_size=vocab_size, width=self.width, num_blocks=1, num_heads=2, cond_width=8)
        return DiT(shape, parameterization=Subs(mask_id))

    def problems(self) -> Iterator[str]:
        if self.width % 4:
            yield f"model.width={self.width}: must be a multiple of 4"


def forget() -> None:
    for cached in (nodes._options, nodes.option_nodes, nodes.node_of, store.register):
        cached.cache_clear()


@pytest.fixture
def registered() -> Iterator[None]:
    registry.names("model")
    registry.register("model", "mine")(MySettings)
    forget()
    yield
    del registry._TABLE.components["model"]["mine"]
    forget()


@pytest.mark.usefixtures("registered")
def test_a_network_of_a_plug_in() -> None:
    overrides = ["name=x", "output_dir=/tmp/none", "data=python_code", "model=mine", "model.width=32"]
    config = compose_config("train", overrides)
    validate_train(config)
    assert config.model == MySettings(32)
    assert label(config.model) == "mine"
    assert not (is_told_time(config.model))
    assert not (takes_adapters(config.model))
    assert not (takes_packed_rows(config.model))
    assert build_predictor(config, vocab_size=28, mask_id=27).denoiser.shape.width == 32
    assert restore_train_config(provenance(config)).model == MySettings(32)
    with pytest.raises(UserError, match=r"model\.width=30: must be a multiple of 4"):
        validate_train(compose_config("train", [*overrides, "model.width=30"]))
    with pytest.raises(UserError, match="mine has no adapters"):
        validate_train(compose_config("train", [*overrides, "peft=lora_r16"]))
