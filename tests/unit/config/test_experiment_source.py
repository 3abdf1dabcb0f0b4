"""The folder of experiments as a Hydra group."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigLoadError

from sm_diffusion.config.experiment_source import ExperimentsSource


@pytest.fixture
def source(tmp_path: Path) -> ExperimentsSource:
    Plugins.instance()  # registers Hydra's own source of files
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "row.yaml").write_text("seed: 3\n")
    return ExperimentsSource("test", f"experiments://{tmp_path}")


def test_only_the_group_is_seen(source: ExperimentsSource) -> None:
    assert source.available()
    assert source.list("", None) == ["experiments"]
    assert source.list("experiments", ObjectType.GROUP) == ["toy"]
    assert source.list("experiments/toy", ObjectType.CONFIG) == ["row"]
    assert source.list("model", None) == []
    assert source.is_group("experiments/toy")
    assert not source.is_group("model")


def test_rows_are_read(source: ExperimentsSource) -> None:
    assert source.is_config("experiments/toy/row")
    assert not source.is_config("toy/row")
    assert source.load_config("experiments/toy/row").config == {"seed": 3}
    with pytest.raises(ConfigLoadError):
        source.load_config("model/row")
