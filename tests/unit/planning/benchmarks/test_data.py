"""`smd bench data`: runs as a user runs it, and its arithmetic follows from the figures it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sm_diffusion.cli.main import main
from sm_diffusion.planning.benchmarks import data as bench_data

FOUND = {
    "tokenizer": "BPE of 8,192",
    "bytes_per_token": 4.0,
    "prepared_tokens_per_second_per_core": 1e6,
    "loaded_tokens_per_second_per_core": 1e8,
    "flops_per_token_mdlm": 5e8,
    "flops_per_token_soft_masked": 6.25e8,
    "consumed_tokens_per_second_mdlm": 2250e12 * 0.5 / 5e8,
    "consumed_tokens_per_second_soft_masked": 2250e12 * 0.5 / 6.25e8,
    "real_share": {"padded_8": 0.37, "packed_8": 0.72, "padded_32": 0.25, "packed_32": 0.86},
    "memory_small": {"megabytes": 10, "sequences": 9000, "before_mb": 200.0, "after_mb": 203.0, "peak_mb": 204.0},
    "memory_large": {"megabytes": 1000, "sequences": 900_000, "before_mb": 200.0, "after_mb": 206.0, "peak_mb": 225.0},
}


def test_the_arithmetic_is_shown() -> None:
    said = "\n".join(bench_data.report(FOUND))
    for words in (
        "1,000,000 tokens/s a core",
        "2.25e+15 FLOP/s (B200, dense bfloat16) x 50% MFU",
        "mdlm         / 5e+08 = 2,250,000 tokens/s",
        "soft_masked  / 6.25e+08 = 1,800,000 tokens/s",
        "by 6 N       / 1.02e+09 = 1,105,365 tokens/s, N = 169,627,218",
        "the loader gives 44.4 times the largest from one core; streaming needs 2.2 cores",
        "packing  micro-batches of 32 conversations: 25% of the positions are real tokens when padded, 86% when packed",
        "1,000 MB of text, 900,000 sequences: 6.0 MB on top of 200.0 (while an epoch is being ordered 25.0)",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--megabytes", "0"], "--megabytes 0: give at least 1"),
        (["--large-megabytes", "999999999"], "--large-megabytes 999999999: needs 4000000.0 GB"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(["bench", "data", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_small_run_prints_every_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "bench.json"
    assert main(["bench", "data", "--small", "--json", str(out)]) == 0
    said = capsys.readouterr().out
    for name in ("prepare", "loader", "model", "memory", "mdlm", "by 6 N", "packing"):
        assert name in said
    found = json.loads(out.read_text())
    assert found["loaded_tokens_per_second_per_core"] > found["prepared_tokens_per_second_per_core"] > 0
    small, large = found["memory_small"], found["memory_large"]
    assert 2 < large["sequences"] / small["sequences"] < 4
    # Anonymous memory of the loader does not follow the text: 2 MB more of it, 4 MB of token ids.
    assert large["after_mb"] - large["before_mb"] < small["after_mb"] - small["before_mb"] + 2
