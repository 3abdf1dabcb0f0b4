"""Command lines of the programs."""

from __future__ import annotations

import pytest

from sm_diffusion.reproduction.programs import quoted


@pytest.mark.parametrize("value", ["/plain/path-1.x", "a b", "it's", "back\\slash", "a\\'b\\", "x=y,{z}"])
def test_quoting_is_what_hydra_reads(value: str) -> None:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    assert OverridesParser.create().parse_override(f"key={quoted(value)}").value() == value
