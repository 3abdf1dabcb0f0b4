"""`smd bench sample` on a tiny network: every figure is there, and no sampler of ours holds (B, L, V)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from sm_diffusion.diffusion.readouts import scratch
from sm_diffusion.planning.benchmarks import sample as bench_sample


def test_bench_writes_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(scratch, "chunk_rows", lambda *_: 16)
    parser = argparse.ArgumentParser()
    bench_sample.add_arguments(parser)
    out = tmp_path / "bench.json"
    sizes = {"vocab": 2000, "width": 64, "blocks": 1, "length": 64, "batch": 2, "steps": 16}
    words = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    assert bench_sample.run_cli(parser.parse_args([*words, "--json", str(out)])) == 0
    assert "plain_over_mdlm" in capsys.readouterr().out
    found = json.loads(out.read_text())
    for name in ("plain", "mdlm", "sm"):
        assert found[f"{name}_ms"] > 0
        assert found[f"{name}_peak_mb"] > 0
    assert set(found["by_top_p"]) == {"1.0", "0.9"}
    for row in found["by_top_p"].values():
        assert row["plain_peak_mb"] > 4 * found["logits_mb"]
        assert row["mdlm_peak_mb"] < found["logits_mb"]
        assert row["sm_peak_mb"] < found["logits_mb"]
    # Soft-masking needs logits wherever a mask is left, MDLM where a token is drawn: 128 positions in 16 steps.
    mdlm, sm = found["arithmetic"]["mdlm"], found["arithmetic"]["sm"]
    assert mdlm["head_rows"] == pytest.approx(128 / 16)
    assert sm["head_rows"] > 5 * mdlm["head_rows"]
    assert sm["forward_gflop"] == pytest.approx(2 * 64 * (2 * 12 * 64**2 + 4 * 64 * 64) / 1e9)
    assert sm["head_gflop"] == pytest.approx(sm["head_rows"] * 2 * 64 * 2000 / 1e9)
    assert found["sm_floor_ms"] > 0
    assert found["mdlm_floor_ms"] > 0
    assert {"sm_over_mdlm_floor", "sm_over_floor"} <= set(found["ratios"])
    assert {"ratios", "machine", "versions", "settings"} <= set(found)
