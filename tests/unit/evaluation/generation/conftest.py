"""The tiny judge, saved once a module."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.judges import save_tiny_judge


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_judge(tmp_path_factory.mktemp("judge"))
