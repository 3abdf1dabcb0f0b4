"""`smd table`: what was run, what was not, and what a difference is worth."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from sm_diffusion import paths
from sm_diffusion.cli import main as cli
from sm_diffusion.reproduction import code_version
from sm_diffusion.reproduction import experiment as experiments
from sm_diffusion.reproduction.report.table import report
from sm_diffusion.training.run_folder import RunFolder
from sm_diffusion.types import UserError
from tests.helpers.experiments import make_experiment, make_run, row_config

SOURCES = '{"sources": {"a": "x"}, "expected": '


@pytest.fixture
def toy(tmp_path: Path) -> experiments.Experiment:
    return experiments.load_experiment("toy", make_experiment(tmp_path / "experiments"))


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_nothing_run_is_said_everywhere(toy: experiments.Experiment, tmp_path: Path) -> None:
    text = report(toy, runs=tmp_path / "runs")
    for row in ("pretrain", "binary", "soft"):
        assert line_of(text, row).split() == [row, "0", *["not", "run"] * 7][: len(line_of(text, row).split())]
    assert "0.0" not in text


def test_one_row_is_not_run_and_others_are(toy: experiments.Experiment, tmp_path: Path) -> None:
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
    text = report(experiments.load_experiment("toy", folder), runs=tmp_path / "runs")
    assert max(map(len, text.splitlines())) <= 110
    assert "11.21 ± 0.10 [11.14, 11.29]" in text


def test_mean_deviation_and_verdict_over_paired_seeds(toy: experiments.Experiment, tmp_path: Path) -> None:
    for seed, base in ((1, 11.0), (2, 12.0), (3, 13.0)):
        make_run(tmp_path, "binary", seed=seed, ppl=base + 0.5)
        make_run(tmp_path, "soft", seed=seed, ppl=base + 0.001 * seed)
        make_run(tmp_path, "pretrain", seed=seed, ppl=base + (0.3 if seed == 2 else -0.3))
    text = report(toy, runs=tmp_path)
    assert "12.50 ± 1.00 [11.50, 13.50]" in line_of(text, "binary")
    joined = " ".join(text.split())
    # Seeds differ by 1, but every seed says the same.
    assert (
        "binary - pretrain: val PPL +0.6 [+0.2, +0.8] over 3 paired seeds: outside the noise by the bootstrap, "
        "not by Student's t [-0.261, +1.46]: run more seeds" in joined
    )
    assert "soft - pretrain: val PPL +0.102 [-0.298, +0.303] over 3 paired seeds: inside the noise" in joined
    assert "with 2 or 3 seeds that is their range" in joined


def test_chosen_pairs_and_missing_seeds(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path / "e", {"compare": [["soft", "binary"], ["soft", "pretrain"]]})
    make_run(tmp_path, "soft", seed=1)
    make_run(tmp_path, "binary", seed=2)
    text = report(experiments.load_experiment("toy", folder), runs=tmp_path)
    assert "soft - binary: val PPL cannot be compared: the rows share no seed" in text
    assert "soft - pretrain: not run" in text


def test_nan_is_said_and_never_the_best(toy: experiments.Experiment, tmp_path: Path) -> None:
    make_run(tmp_path, "binary", metrics={"val/ppl": math.nan, "val/nll": math.nan})
    make_run(tmp_path, "soft", ppl=11.0)
    text = report(toy, runs=tmp_path)
    assert "NaN" in line_of(text, "binary")
    assert "warning: binary: val/ppl is NaN with seed 1, and so is its mean" in text
    assert "binary - soft: val PPL NaN" in text


def test_by_seed(toy: experiments.Experiment, tmp_path: Path) -> None:
    make_run(tmp_path, "soft", seed=1, ppl=11.0)
    make_run(tmp_path, "soft", seed=7, ppl=12.0)
    text = report(toy, runs=tmp_path, by_seed=True)
    lines = [line.split()[:3] for line in text.splitlines() if line.startswith("soft ")]
    assert ["soft", "1", "11.00"] in lines
    assert ["soft", "7", "12.00"] in lines


def write_expected(
    toy: experiments.Experiment, *entries: tuple[str, str, float, float | None, str], **more: Any
) -> None:
    keys = ("row", "metric", "value", "tolerance", "source")
    content = {"sources": {"notes": "paper " * 30, "own": "an earlier run"}, **more}
    content["expected"] = [dict(zip(keys, entry)) for entry in entries]
    (toy.folder / "expected.json").write_text(json.dumps(content))


def test_expected_values_stand_beside_ours(toy: experiments.Experiment, tmp_path: Path) -> None:
    write_expected(
        toy,
        ("soft", "val/ppl", 11.2, 0.1, "own"),
        ("soft", "val/ppl", 9.0, 1, "notes"),
        ("soft", "val/nll", 2.42, 0.1, "notes"),
        ("binary", "val/ppl", 12.0, None, "own"),
        gpu_hours={"soft": 12.5},
        cost_command="smd plan toy",
        hardware="2 cores",
    )
    make_run(tmp_path, "soft", ppl=11.25)
    text = report(toy, runs=tmp_path)
    lines = [line.split() for line in text.splitlines()]
    assert ["row", "metric", "n", "ours", "notes", "own"] in lines
    both = "soft val PPL 1 11.25 9.000 (ours +2.25: OUTSIDE 1) 11.20 (ours +0.05: within 0.1)"
    assert both.split() in lines
    assert ["binary", "val", "PPL", "0", "not", "run", "-", "12.00"] in lines
    assert text.count("paper") == 30
    assert max(map(len, text.splitlines())) <= 110
    assert "planned GPU-h" in text
    assert "source own: an earlier run" in text
    assert "planned GPU-hours: smd plan toy" in text
    assert "hardware: 2 cores" in text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"soft": {}}', "soft: the keys are sources, expected"),
        (SOURCES + '[{"row": "sof", "metric": "m", "value": 1, "source": "a"}]}', "sof: no such"),
        ('{"expected": [{"row": "soft", "metric": "m", "value": 1, "source": "a"}]}', 'not described in "sources"'),
        (SOURCES + '[{"row": "soft", "metric": "m", "value": "1", "source": "a"}]}', "finite number"),
        ('{"expected": [3]}', r"expected\[0\]: 3: give"),
        ('{"expected": {}}', "expected: give a list"),
        ('{"sources": []}', "sources: give"),
        ('{"gpu_hours": {"gone": 1}}', "gpu_hours: gone: no such row; the rows are pretrain, binary, soft"),
        ('{"expected": [{"row": "soft", "value": 1, "source": "a"}]}', "metric: None: give"),
        ('{"expected": [{"rwo": "soft"}]}', r"expected\[0\]: rwo: the keys are"),
        (
            SOURCES + '[{"row": "soft", "metric": "m", "value": 1, "source": "a"},'
            '{"row": "soft", "metric": "m", "value": 2, "source": "a"}]}',
            "two values of soft m a",
        ),
        (
            SOURCES + '[{"row": "soft", "metric": "m", "value": 1, "tolerance": -1, "source": "a"}]}',
            "tolerance: -1: give a number >= 0",
        ),
    ],
)
def test_wrong_expectations_name_the_entry(
    toy: experiments.Experiment, tmp_path: Path, content: str, words: str
) -> None:
    (toy.folder / "expected.json").write_text(content)
    with pytest.raises(UserError, match=rf"expected\.json.*{words}"):
        report(toy, runs=tmp_path)


def test_two_code_versions_are_shown_apart(toy: experiments.Experiment, tmp_path: Path) -> None:
    for seed in (1, 2):
        make_run(tmp_path, "soft", seed=seed, ppl=11.0 if seed == 1 else 13.0, git_commit=f"{seed}" * 40)
        make_run(tmp_path, "binary", seed=seed, ppl=12.0, git_commit="1" * 40)
    text = report(toy, runs=tmp_path)
    joined = " ".join(text.split())
    assert "warning: these results come from 2 code versions (1111111111, 2222222222); they are shown apart" in joined
    assert line_of(text, "soft @1111111111").split()[2:4] == ["1", "11.00"]
    assert line_of(text, "soft @2222222222").split()[2:4] == ["1", "13.00"]
    assert "binary @1111111111 - soft @1111111111: val PPL +1, one seed" in joined
    assert "12.00 ± 1.41" not in text
    lines = list(csv.DictReader(io.StringIO(report(toy, runs=tmp_path, style="csv"))))
    found = {(line["row"], line["version"]): line["mean"] for line in lines if line["metric"] == "val/ppl"}
    assert found["soft", "1111111111"] == "11.0"
    assert found["soft", "2222222222"] == "13.0"


def test_uncommitted_changes_are_another_version(toy: experiments.Experiment, tmp_path: Path) -> None:
    make_run(tmp_path, "soft", git_dirty=True)
    make_run(tmp_path, "binary", git_dirty=False)
    text = " ".join(report(toy, runs=tmp_path).split())
    assert "2 code versions (0123456789, 0123456789+changes)" in text
    assert "warning: some results were made from sources with changes that no commit holds" in text


def test_commits_with_the_same_sources_are_one_version(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = {"a" * 40: "tree 1", "b" * 40: "tree 1", "c" * 40: "tree 2", "d" * 40: None}
    monkeypatch.setattr(code_version, "_sources", trees.__getitem__)
    labels = code_version.distinct_versions({"git_commit": commit} for commit in trees)
    assert labels == {"a" * 10: "a" * 10, "b" * 10: "a" * 10, "c" * 10: "c" * 10, "d" * 10: "d" * 10}


def test_sources_of_a_commit_leave_the_tools_out() -> None:
    if shutil.which("git") is None or not (paths.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "-C", str(paths.ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    found = code_version._sources(done.stdout.strip())
    assert found is not None
    assert "sm_diffusion/diffusion" in found
    assert "train.py" in found
    assert "sm_diffusion/reproduction" not in found
    assert code_version._sources("0" * 40) is None


def test_warnings_of_mixed_settings_missing_cells_and_unfinished_runs(
    toy: experiments.Experiment, tmp_path: Path
) -> None:
    make_run(tmp_path, "soft", seed=1)
    other = row_config("soft", 2, trainer={"max_steps": 7})
    make_run(tmp_path, "soft", seed=2, config=other, metrics={"val/ppl": 9.0})
    (make_run(tmp_path, "binary") / "results.json").unlink()
    RunFolder(make_run(tmp_path, "pretrain")).stale_mark.touch()
    text = " ".join(report(toy, runs=tmp_path).split())
    assert "warning: soft: its seeds were run with different settings" in text
    assert "warning: soft: val/bits_per_byte is missing with seed 2" in text
    assert "missing: pretrain: seed 2, which other rows have" in text
    assert "binary 0 not run" in text
    assert f"unfinished: {tmp_path / 'toy' / 'binary'}; continue with: smd run toy" in text
    assert f"warning: {tmp_path / 'toy' / 'pretrain'}: what it starts from was trained again since" in text


def test_csv_is_tidy_and_not_rounded(toy: experiments.Experiment, tmp_path: Path) -> None:
    make_run(tmp_path, "soft", ppl=11.123456789)
    write_expected(toy, ("soft", "val/ppl", 11, 1, "own"))
    lines = list(csv.DictReader(io.StringIO(report(toy, runs=tmp_path, style="csv"))))
    found = {(line["row"], line["metric"]): line for line in lines}
    assert float(found["soft", "val/ppl"]["mean"]) == 11.123456789
    assert found["soft", "val/ppl"]["source"] == "own"
    assert found["soft", "val/ppl"]["verdict"] == "+0.1235: within 1"
    assert float(found["soft", "omegas/omega_a"]["mean"]) == 1.12
    assert found["binary", "val/ppl"]["mean"] == "not run"


def test_markdown(toy: experiments.Experiment, tmp_path: Path) -> None:
    make_run(tmp_path, "soft", ppl=11.25)
    text = report(toy, runs=tmp_path, style="markdown")
    assert text.startswith("### Toy")
    assert "| soft | 1 | 11.25 |" in text
    assert "| binary | 0 | not run |" in text


def test_latex_escapes_every_cell(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path / "e", {"title": "50 % & more_", "notes": "a\nb"})
    for seed in (1, 2):
        make_run(tmp_path, "soft", seed=seed, ppl=11 + seed)
    text = report(experiments.load_experiment("toy", folder), runs=tmp_path, style="latex")
    assert r"\caption{50 \% \& more\_}" in text
    assert r"soft & 2 & 12.50 $\pm$ 0.71 [12.00, 13.00] &" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len({len(re.findall(r"(?<!\\)&", line)) for line in body}) == 1
    assert all(line.startswith("%") for line in text.splitlines() if "seed" in line)


def test_html_is_whole_escaped_and_well_formed(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path / "e", {"title": "<Toy> & co"})
    make_run(tmp_path, "soft", ppl=11.25)
    text = report(experiments.load_experiment("toy", folder), runs=tmp_path, style="html")
    assert "<h1>&lt;Toy&gt; &amp; co</h1>" in text
    assert '<td class="l">soft</td><td class="l">1</td><td>11.25</td>' in text
    assert '<td class="none">not run</td>' in text
    assert "http" not in text
    ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>\n").replace('<meta charset="utf-8">', ""))


def test_columns_of_the_experiment(tmp_path: Path) -> None:
    folder = make_experiment(tmp_path / "e", {"columns": ["val/bits_per_byte", "gen/entropy"]})
    make_run(tmp_path, "soft", metrics={"val/bits_per_byte": 2.5, "gen/entropy": 5.25})
    text = report(experiments.load_experiment("toy", folder), runs=tmp_path)
    assert line_of(text, "row").split()[:4] == ["row", "n", "bits/byte", "gen/entropy"]
    assert line_of(text, "soft").split()[:4] == ["soft", "1", "2.500", "5.250"]


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(experiments, "EXPERIMENTS", make_experiment(tmp_path / "e"))
    make_run(tmp_path / "runs", "soft", ppl=11.25)
    assert cli.main(["table", "toy", "--runs", str(tmp_path / "runs")]) == 0
    assert "11.25" in capsys.readouterr().out
    assert cli.main(["table", "tow"]) == 2
    assert capsys.readouterr().err == "error: tow: no such experiment; choose one of: toy\n"
    assert cli.main(["table", "toy", "--from", str(tmp_path / "gone")]) == 2
    assert "gone: no such folder; give the folder of all runs, or wandb:entity/project" in capsys.readouterr().err
