"""Plots: what is read from the logs, and that a picture comes out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from sm_diffusion import tools
from sm_diffusion.diffusion.soft_mask import confidence
from sm_diffusion.tools import cli, plots
from sm_diffusion.types import UserError
from tests.unit.test_tools_experiment import make_experiment, make_metrics, make_run

HEADER = "epoch,omega/a,omega/b,omega/s,step,train/loss,val/nll,val/ppl"


def picture_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


@pytest.mark.parametrize("values", [(0.27, 3.05, -0.75), (1.0, 0.0, 0.0), (0.5, 100.0, -2.0)])
def test_strength_is_lambda(values: tuple[float, float, float]) -> None:
    omegas = plots.Omegas(*values)
    for entropy in (0.0, 1.3, 10.8):
        expected = confidence(torch.tensor(-entropy, dtype=torch.float64), *map(torch.tensor, values))
        assert omegas.strength(entropy) == pytest.approx(float(expected), rel=1e-6, abs=1e-12)
    assert plots.Omegas(1.0, 1e6, -0.1).strength(10.8) == pytest.approx(0.0, abs=1e-12)


def test_later_version_wins_where_steps_overlap(tmp_path: Path) -> None:
    make_metrics(tmp_path, 0, [HEADER, "0,,,,10,3.0,,", "0,,,,20,2.9,,", "0,,,,20,,2.8,16.4", "0,,,,30,9.9,,"])
    make_metrics(tmp_path, 10, [HEADER, "0,,,,40,2.5,,"])
    make_metrics(tmp_path, 2, [HEADER, "0,1.5,-1.0,0.4,20,2.85,,", "0,,,,30,2.7,,", "0,,,,40,2.6,,"])
    (tmp_path / "metrics" / "version_11").mkdir()
    metrics = plots.read_metrics(tmp_path)
    assert metrics["train/loss"] == ([10, 20, 30, 40], [3.0, 2.85, 2.7, 2.5])
    assert metrics["val/nll"] == ([20], [2.8])
    assert metrics["omega/s"] == ([20], [0.4])
    assert "epoch" not in metrics


def test_broken_metrics_name_file_and_line(tmp_path: Path) -> None:
    make_metrics(tmp_path, 0, [HEADER, "0,,,,10,3.0,,", "0,,,,x,3.0,,"])
    with pytest.raises(UserError, match=r"version_0/metrics.csv: line 3"):
        plots.read_metrics(tmp_path)


def test_run_plots(tmp_path: Path) -> None:
    soft, plain = make_run(tmp_path, "soft"), make_run(tmp_path, "binary")
    assert plots.save_run_plots(plain) == []
    for folder in (soft, plain):
        make_metrics(folder, 0, [HEADER, "0,,,,10,3.0,,", "0,,,,10,,nan,nan", "0,,,,20,2.5,2.9,18"])
    assert plots.save_run_plots(plain) == [plain / "plots" / "loss.png"]
    files = plots.save_run_plots(soft)
    assert files == [soft / "plots" / "loss.png", soft / "plots" / "lambda.png"]
    assert all(min(picture_size(path)) >= 600 for path in files)


def test_omegas_come_from_the_results_or_else_the_log(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "soft")
    start = plots.Omegas(0.27, 3.05, -0.75)
    assert plots.run_omegas(folder) == {"start": start, "learned": plots.Omegas(0.6, 1.12, -1.96)}
    (folder / "results.json").unlink()
    assert plots.run_omegas(folder) == {"start": start}
    make_metrics(folder, 0, [HEADER, "0,1.5,-1.0,0.4,10,3.0,,", "0,1.6,-1.1,0.5,20,3.0,,"])
    assert plots.run_omegas(folder) == {"start": start, "learned": plots.Omegas(0.5, 1.6, -1.1)}


def test_vocabulary_of_a_run(tmp_path: Path) -> None:
    assert plots.run_vocabulary(make_run(tmp_path, "soft")) == 28


def test_lambda_axis_ends_at_log_v(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = {}

    def keep(draw: object, out: Path) -> Path:
        from matplotlib.figure import Figure

        axes = Figure().add_subplot()
        draw(axes)  # type: ignore[operator]
        limits["x"] = axes.get_xlim()
        return out

    monkeypatch.setattr(plots, "_save", keep)
    plots.lambda_curve({"start": plots.Omegas(0.5, 1.0, -1.0)}, 28, tmp_path / "x.png")
    assert limits["x"] == (0, pytest.approx(math.log(28)))


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tools, "EXPERIMENTS", make_experiment(tmp_path / "experiments"))
    runs = Path("runs")
    assert cli.main(["plot", "toy"]) == 2
    assert "holds no run with metrics; run it first: smd run toy" in capsys.readouterr().err
    for row in ("pretrain", "soft"):
        make_metrics(make_run(runs, row), 0, [HEADER, "0,,,,10,3.0,,", "0,,,,20,2.5,2.9,18"])
    assert cli.main(["plot", "toy"]) == 0
    written = capsys.readouterr().out.split()
    assert "runs/toy/plots/loss.png" in written
    assert "runs/toy/plots/lambda.png" in written
    assert all(Path(path).is_file() for path in written)
    assert cli.main(["plot", "runs/toy/soft"]) == 0
    assert cli.main(["plot", "runs/toy"]) == 2
    assert "runs/toy: neither a run folder (with config.yaml) nor an experiment (toy)" in capsys.readouterr().err
    assert cli.main(["plot", str(make_run(runs, "binary"))]) == 2
    assert "has logged nothing to draw" in capsys.readouterr().err
