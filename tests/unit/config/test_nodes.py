"""Settings become Hydra's nodes and come back as they were."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ValidationError

from sm_diffusion import registry
from sm_diffusion.config import nodes
from sm_diffusion.config.compose import compose_config, provenance, restore_train_config
from sm_diffusion.types import UserError


@dataclass(frozen=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class Outer:
    inner: Inner = field(default_factory=Inner)
    kind: Literal["a", "b"] = "a"
    limit: float | None = None
    named: dict[str, Inner] = field(default_factory=dict)


def node(**values: Any) -> DictConfig:
    merged = OmegaConf.merge(OmegaConf.structured(nodes.node_of(Outer)), values)
    assert isinstance(merged, DictConfig)
    return merged


def test_values_come_back_with_their_own_types() -> None:
    made = nodes.to_settings(Outer, node(inner={"sizes": [3]}, limit=2, named={"x": {"sizes": [4, 5]}}))
    assert made == Outer(inner=Inner((3,)), limit=2.0, named={"x": Inner((4, 5))})
    assert nodes.plain(made) == {
        "inner": {"sizes": [3]}, "kind": "a", "limit": 2.0, "named": {"x": {"sizes": [4, 5]}},
    }  # fmt: skip


def test_wrong_types_and_choices_are_refused() -> None:
    with pytest.raises(ValidationError):
        node(limit="many")
    with pytest.raises(nodes.Refused, match=r"kind=c: unknown; choose one of a, b"):
        nodes.to_settings(Outer, node(kind="c"))


def test_a_configuration_survives_a_checkpoint() -> None:
    config = compose_config("train", ["schedule=cosine", "soft_mask.top_k=2", "optim.betas=[0.8,0.9]"])
    assert restore_train_config(provenance(config)) == config


def test_older_checkpoints_name_classes() -> None:
    stored = provenance(compose_config("train", ["schedule=linear"]))
    stored["types"] = {"model": "DiTConfig", "variant": "SoftMaskedVariantConfig", "data": "PythonCorpusConfig"}
    config = restore_train_config(stored)
    assert registry.name_of("schedule", type(config.schedule)) == "linear"
    assert config.variant.name == "soft_masked"


def test_a_configuration_of_another_version_is_one_line() -> None:
    stored = provenance(compose_config("train", []))
    with pytest.raises(UserError, match="configuration is of another version"):
        restore_train_config({"config": stored["config"], "types": {"model": "Vanished"}})


def test_a_component_is_read_from_plain_values() -> None:
    made = nodes.from_plain("schedule", {"name": "cosine", "eps": 0.25})
    assert nodes.plain(made, "schedule") == {"name": "cosine", "eps": 0.25}
    with pytest.raises(UserError, match="unknown"):
        nodes.from_plain("schedule", {"name": "gone"})


def test_every_default_is_known_by_its_full_key() -> None:
    found = list(nodes.defaults(type(compose_config("train", []))))
    assert ("callbacks.ema.decay", 0.9999) in found
    assert ("optim.omega_lr", 1e-2) in found
