"""`smd bench backbone` at CPU size: every figure is there, and the counts are those of the orders it names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sm_diffusion.cli import main as cli
from sm_diffusion.planning.benchmarks import backbone as bench_backbone

NEW, BLOCK = 8, 4


def test_bench_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    sizes = {"model": "qwen2_tiny", "length": 40, "prompt": 5, "new": NEW, "block": BLOCK, "repeats": 1}
    words = [word for name, size in sizes.items() for word in (f"--{name}", str(size))]
    assert cli.main(["bench", "backbone", *words, "--device", "cpu", "--json", str(out)]) == 0
    assert "fine-tuning step, 96 positions" in capsys.readouterr().out
    found = json.loads(out.read_text())
    decode = found["decode"]
    for order in ("whole", "blocks", "blocks_prefix", "blocks_dual"):
        # Dream's timetable has steps that draw nothing; only soft-masking makes a pass for those.
        assert NEW / 2 < decode[order]["mdlm_passes"] <= decode[order]["sm_passes"] <= NEW, order
    assert decode["threshold"]["mdlm_passes"] < decode["blocks"]["mdlm_passes"]
    assert decode["threshold"]["sm_tokens_a_pass"] > 1
    for row in (row for row in decode.values() if isinstance(row, dict)):
        assert row["sm_over_mdlm"] > 0
        assert row["sm_peak_mb"] > 0
    assert found["train"]["sm_peak_gb"] > found["train"]["weights_gb"]
    assert found["train"]["trained"] > 0


def test_random_networks_are_in_place_and_not_degenerate() -> None:
    lm = bench_backbone.random_denoiser("qwen2_tiny", device="cpu").lm
    assert not any(parameter.is_meta for parameter in lm.parameters())
    assert lm.model.rotary_emb.inv_freq.dtype == torch.float32
    assert lm.lm_head.weight.std().item() == pytest.approx(bench_backbone.STD, rel=0.05)
    assert cli.main(["bench", "backbone", "--model", "dit_tiny", "--device", "cpu"]) == 2
