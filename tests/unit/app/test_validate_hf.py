"""Settings of pretrained backbones and packed rows that do not go together."""

from __future__ import annotations

from sm_diffusion.app.validate_hf import hf_problems
from sm_diffusion.config.compose import compose_config
from sm_diffusion.data.chat.settings import ChatSettings
from sm_diffusion.denoisers.dit.settings import DiTSettings
from sm_diffusion.registry import problems_of


def test_settings_are_checked() -> None:
    overrides = ["data=python_chat", "model=qwen2_tiny", "objective=sft", "data.packing=block_diagonal"]
    config = compose_config("train", overrides)
    assert [*problems_of(config.data), *hf_problems(config)] == []
    data, network_settings = config.data, config.model
    assert isinstance(data, ChatSettings)
    for packing, packed_length, model, words in (
        ("none", 512, network_settings, "data.packed_length=512: no rows are packed; set data.packing=block_diagonal"),
        ("none", 512, network_settings, "data.packed_length=512: no rows are packed; set data.packing=block_diagonal"),
        ("block_diagonal", 256, network_settings, "data.packed_length=256: one sample may take 312 tokens; set at"),
        ("block_diagonal", None, DiTSettings(name="dit"), "data.packing=block_diagonal: model=dit takes no"),
    ):
        data.packing, data.packed_length, config.model = packing, packed_length, model
        (problem,) = [*problems_of(data), *hf_problems(config)]
        assert problem.startswith(words)
