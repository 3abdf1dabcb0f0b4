"""`smd table`: what was run, what was not, and what a difference is worth."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from sm_diffusion import tools
from sm_diffusion.tools import cli
from sm_diffusion.tools.table import report
from sm_diffusion.types import UserError
from tests.unit.test_tools_experiment import make_experiment, make_run, row_config


@pytest.fixture
def toy(tmp_path: Path) -> tools.Experiment:
    return tools.load_experiment("toy", make_experiment(tmp_path / "experiments"))


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_nothing_run_is_said_everywhere(toy: tools.Experiment, tmp_path: Path) -> None:
    text = report(toy, runs=tmp_path / "runs")
    for row in ("pretrain", "binary", "soft"):
        assert line_of(text, row).split() == [row, "0", *["not", "run"] * 7][: len(line_of(text, row).split())]
    assert "0.0" not in text


def test_one_row_is_not_run_and_others_are(toy: tools.Experiment, tmp_path: Path) -> None:
    make_run(tmp_path, "pretrain", ppl=12.5)
    make_run(tmp_path, "soft", ppl=11.25)
    text = report(toy, runs=tmp_path)
    assert "12.50" in line_of(text, "pretrain")
    assert "not run" in line_of(text, "binary")
    assert "11.25" in line_of(text, "soft")
    assert "12.25" in line_of(text, "soft")  # without feedback
    assert line_of(text, "pretrain").rstrip().endswith("-")  # which does not apply to it
    assert "0.600, 1.12, -1.96" in text
    assert "pretrain - soft: val PPL +1.25, one seed: its spread is not known" in text
    assert max(map(len, text.splitlines())) <= 110


def test_width_holds_with_long_names_and_spreads(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path / "experiments")
    for name in ("pretrain", "binary", "soft"):
        (folder / "toy" / f"{name}.yaml").rename(folder / "toy" / f"{name}_continued_at_equal_compute.yaml")
    (folder / "toy" / "experiment.yaml").unlink()
    for row in ("pretrain", "binary", "soft"):
        for seed in (1, 2):
            run = make_run(tmp_path / "runs", row, seed=seed, ppl=11 + seed / 7)
            suffix = "" if seed == 1 else f"-seed{seed}"
            run.rename(run.with_name(f"{row}_continued_at_equal_compute{suffix}"))
    text = report(tools.load_experiment("toy", folder), runs=tmp_path / "runs")
    assert max(map(len, text.splitlines())) <= 110
    assert "11.21 ± 0.10" in text


def test_mean_deviation_and_verdict_over_paired_seeds(toy: tools.Experiment, tmp_path: Path) -> None:
    for seed, base in ((1, 11.0), (2, 12.0), (3, 13.0)):
        make_run(tmp_path, "binary", seed=seed, ppl=base + 0.5)
        make_run(tmp_path, "soft", seed=seed, ppl=base + 0.001 * seed)
        make_run(tmp_path, "pretrain", seed=seed, ppl=base + (0.3 if seed == 2 else -0.3))
    text = report(toy, runs=tmp_path)
    assert "12.50 ± 1.00" in line_of(text, "binary")
    # Seeds differ by 1, but every seed says the same.
    assert "binary - pretrain: val PPL +0.6 ± 0.35 over 3 paired seeds: larger than the seed spread" in text
    assert "soft - pretrain: val PPL +0.102 ± 0.35 over 3 paired seeds: smaller than the seed spread" in text


def test_chosen_pairs_and_missing_seeds(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path / "e", {"compare": [["soft", "binary"], ["soft", "pretrain"]]})
    make_run(tmp_path, "soft", seed=1)
    make_run(tmp_path, "binary", seed=2)
    text = report(tools.load_experiment("toy", folder), runs=tmp_path)
    assert "soft - binary: val PPL cannot be compared: the rows share no seed" in text
    assert "soft - pretrain: not run" in text


def test_nan_is_said_and_never_the_best(toy: tools.Experiment, tmp_path: Path) -> None:
    make_run(tmp_path, "binary", metrics={"val/ppl": math.nan, "val/nll": math.nan})
    make_run(tmp_path, "soft", ppl=11.0)
    text = report(toy, runs=tmp_path)
    assert "NaN" in line_of(text, "binary")
    assert "warning: binary: val/ppl, val/nll is NaN in at least one run" in text
    assert "binary - soft: val PPL NaN" in text


def test_by_seed(toy: tools.Experiment, tmp_path: Path) -> None:
    make_run(tmp_path, "soft", seed=1, ppl=11.0)
    make_run(tmp_path, "soft", seed=7, ppl=12.0)
    text = report(toy, runs=tmp_path, by_seed=True)
    lines = [line.split()[:3] for line in text.splitlines() if line.startswith("soft ")]
    assert ["soft", "1", "11.00"] in lines
    assert ["soft", "7", "12.00"] in lines


def test_expected_values_stand_beside_ours(toy: tools.Experiment, tmp_path: Path) -> None:
    expected: dict[str, Any] = {
        "soft": {
            "val/ppl": [
                {"value": 11.2, "tolerance": 0.1, "source": "earlier"},
                {"value": 9.0, "tolerance": 1, "source": "paper " * 30},
            ]
        },
        "binary": {"val/ppl": {"value": 12.0, "tolerance": None, "source": "probe"}},
    }
    (toy.folder / "expected.json").write_text(json.dumps(expected))
    make_run(tmp_path, "soft", ppl=11.25)
    text = report(toy, runs=tmp_path)
    assert "+0.05 (within 0.1)" in text
    assert "+2.25 (OUTSIDE 1)" in text
    assert "earlier" in text
    assert text.count("paper") == 30
    assert max(map(len, text.splitlines())) <= 110
    probe = next(line for line in text.splitlines() if line.endswith("probe"))
    assert probe.split() == ["binary", "val", "PPL", "not", "run", "12.00", "not", "run", "probe"]


def test_expected_of_an_unknown_row_is_refused(toy: tools.Experiment, tmp_path: Path) -> None:
    (toy.folder / "expected.json").write_text('{"sof": {}}')
    with pytest.raises(UserError, match=r"expected.json: sof: no such row; the rows are pretrain, binary, soft"):
        report(toy, runs=tmp_path)
    (toy.folder / "expected.json").write_text('{"soft": {"val/ppl": 3}}')
    with pytest.raises(UserError, match="soft: val/ppl: give"):
        report(toy, runs=tmp_path)


def test_warnings_of_mixed_code_settings_and_unfinished_runs(toy: tools.Experiment, tmp_path: Path) -> None:
    make_run(tmp_path, "soft", seed=1)
    other = row_config("soft", 2, trainer={"max_steps": 7})
    make_run(tmp_path, "soft", seed=2, git_commit="f" * 40, config=other)
    (make_run(tmp_path, "binary") / "results.json").unlink()
    text = " ".join(report(toy, runs=tmp_path).split())
    assert "warning: these results come from 2 code versions: 0123456789, ffffffffff" in text
    assert "warning: soft: its seeds were run with different settings" in text
    assert "binary 0 not run" in text
    assert f"unfinished: {tmp_path / 'toy' / 'binary'}; continue with: smd run toy" in text


def test_csv_is_tidy_and_not_rounded(toy: tools.Experiment, tmp_path: Path) -> None:
    make_run(tmp_path, "soft", ppl=11.123456789)
    (toy.folder / "expected.json").write_text('{"soft": {"val/ppl": {"value": 11, "tolerance": 1, "source": "a, b"}}}')
    lines = list(csv.DictReader(io.StringIO(report(toy, runs=tmp_path, style="csv"))))
    found = {(line["row"], line["metric"]): line for line in lines}
    assert float(found["soft", "val/ppl"]["mean"]) == 11.123456789
    assert found["soft", "val/ppl"]["source"] == "a, b"
    assert float(found["soft", "omegas/omega_a"]["mean"]) == 1.12
    assert found["binary", "val/ppl"]["mean"] == "not run"


def test_markdown(toy: tools.Experiment, tmp_path: Path) -> None:
    make_run(tmp_path, "soft", ppl=11.25)
    text = report(toy, runs=tmp_path, style="markdown")
    assert text.startswith("### Toy")
    assert "| soft | 1 | 11.25 |" in text
    assert "| binary | 0 | not run |" in text


def test_columns_of_the_experiment(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path / "e", {"columns": ["val/bits_per_byte", "gen/entropy"]})
    make_run(tmp_path, "soft", metrics={"val/bits_per_byte": 2.5, "gen/entropy": 5.25})
    text = report(tools.load_experiment("toy", folder), runs=tmp_path)
    assert line_of(text, "row").split()[:4] == ["row", "n", "bits/byte", "gen/entropy"]
    assert line_of(text, "soft").split()[:4] == ["soft", "1", "2.500", "5.250"]


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(tools, "EXPERIMENTS", make_experiment(tmp_path / "e"))
    make_run(tmp_path / "runs", "soft", ppl=11.25)
    assert cli.main(["table", "toy", "--runs", str(tmp_path / "runs")]) == 0
    assert "11.25" in capsys.readouterr().out
    assert cli.main(["table", "tow"]) == 2
    assert capsys.readouterr().err == "error: tow: no such experiment; choose one of: toy\n"
