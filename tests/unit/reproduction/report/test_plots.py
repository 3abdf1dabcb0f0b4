"""Plots: what is read from the logs, and that a picture comes out."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from sm_diffusion.cli import main as cli
from sm_diffusion.diffusion.omegas import Omegas
from sm_diffusion.diffusion.soft_mask import confidence
from sm_diffusion.reproduction import experiment as experiments
from sm_diffusion.reproduction import run_logs
from sm_diffusion.reproduction.collected import Row
from sm_diffusion.reproduction.report import figures, plots
from sm_diffusion.reproduction.report import points as plot_points
from sm_diffusion.types import UserError
from tests.helpers.experiments import make_experiment, make_metrics, make_run

HEADER = "epoch,omega/a,omega/b,omega/s,step,train/loss,val/nll,val/ppl"


def picture_size(path: Path) -> tuple[int, int]:
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG")
    return int.from_bytes(data[16:20]), int.from_bytes(data[20:24])


@pytest.mark.parametrize("values", [(0.27, 3.05, -0.75), (1.0, 0.0, 0.0), (0.5, 100.0, -2.0)])
def test_strength_is_lambda(values: tuple[float, float, float]) -> None:
    omegas = Omegas(*values)
    for entropy in (0.0, 1.3, 10.8):
        expected = confidence(torch.tensor(-entropy, dtype=torch.float64), *map(torch.tensor, values))
        assert omegas.strength(entropy) == pytest.approx(float(expected), rel=1e-6, abs=1e-12)
    assert Omegas(1.0, 1e6, -0.1).strength(10.8) == pytest.approx(0.0, abs=1e-12)


def test_later_version_wins_where_steps_overlap(tmp_path: Path) -> None:
    make_metrics(tmp_path, 0, [HEADER, "0,,,,10,3.0,,", "0,,,,20,2.9,,", "0,,,,20,,2.8,16.4", "0,,,,30,9.9,,"])
    make_metrics(tmp_path, 10, [HEADER, "0,,,,40,2.5,,"])
    make_metrics(tmp_path, 2, [HEADER, "0,1.5,-1.0,0.4,20,2.85,,", "0,,,,30,2.7,,", "0,,,,40,2.6,,"])
    (tmp_path / "metrics" / "version_11").mkdir()
    metrics = run_logs.read_metrics(tmp_path)
    assert metrics["train/loss"] == ([10, 20, 30, 40], [3.0, 2.85, 2.7, 2.5])
    assert metrics["val/nll"] == ([20], [2.8])
    assert metrics["omega/s"] == ([20], [0.4])
    assert "epoch" not in metrics


def test_broken_metrics_name_file_and_line(tmp_path: Path) -> None:
    make_metrics(tmp_path, 0, [HEADER, "0,,,,10,3.0,,", "0,,,,x,3.0,,"])
    with pytest.raises(UserError, match=r"version_0/metrics.csv: line 3"):
        run_logs.read_metrics(tmp_path)


def test_run_plots(tmp_path: Path) -> None:
    soft, plain = make_run(tmp_path, "soft"), make_run(tmp_path, "binary")
    assert plots.save_run_plots(plain) == []
    for folder in (soft, plain):
        make_metrics(folder, 0, [HEADER, "0,,,,10,3.0,,", "0,,,,10,,nan,nan", "0,,,,20,2.5,2.9,18"])
    assert plots.save_run_plots(plain) == [plain / "plots" / "loss.png"]
    files = plots.save_run_plots(soft)
    assert files == [soft / "plots" / "loss.png", soft / "plots" / "lambda.png"]  # no omegas were logged
    assert all(min(picture_size(path)) >= 600 for path in files)


def test_omegas_come_from_the_results_or_else_the_log(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "soft")
    start = Omegas(0.27, 3.05, -0.75)
    assert run_logs.run_omegas(folder) == {"start": start, "learned": Omegas(0.6, 1.12, -1.96)}
    (folder / "results.json").unlink()
    assert run_logs.run_omegas(folder) == {"start": start}
    make_metrics(folder, 0, [HEADER, "0,1.5,-1.0,0.4,10,3.0,,", "0,1.6,-1.1,0.5,20,3.0,,"])
    assert run_logs.run_omegas(folder) == {"start": start, "learned": Omegas(0.5, 1.6, -1.1)}


def test_vocabulary_of_a_run(tmp_path: Path) -> None:
    assert run_logs.run_vocabulary(make_run(tmp_path, "soft")) == 28


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved from now on, instead of their files."""
    kept: list[Figure] = []

    def keep(draw: Callable[[Figure], None], out: Path, **size: object) -> Path:
        kept.append(Figure())
        draw(kept[-1])
        return out

    monkeypatch.setattr(figures, "save", keep)
    return kept


def test_lambda_axis_ends_at_log_v(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = drawn(monkeypatch)
    sets = [Omegas(0.5, 1.0, -1.0), Omegas(0.7, 1.0, -1.0)]
    figures.lambda_curves({"soft": sets}, 28, tmp_path / "x.png")
    axes = kept[0].axes[0]
    assert axes.get_xlim() == (0, pytest.approx(math.log(28)))
    assert axes.lines[0].get_ydata()[0] == pytest.approx(0.6 / (1 + math.exp(-1.0)))  # the mean of both at H = 0
    assert len(axes.collections) == 1  # their range


def test_loss_curve_is_the_mean_over_seeds_at_shared_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = drawn(monkeypatch)
    logs = [{"val/nll": ([10, 20, 30], [3.0, 2.0, 1.0])}, {"val/nll": ([10, 20], [5.0, 3.0])}]
    figures.loss_curves({"soft": logs}, tmp_path / "x.png")
    line = kept[0].axes[0].lines[0]
    assert list(line.get_xdata()) == [10, 20]
    assert list(line.get_ydata()) == [4.0, 2.5]


def test_rows_that_end_at_steps_of_their_own_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = drawn(monkeypatch)
    soft = [{"val/nll": ([step], [value])} for step, value in ((90, 1.0), (110, 2.0))]
    figures.loss_curves({"soft": soft}, tmp_path / "x.png")
    (line,) = kept[0].axes[0].lines
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([100], [1.5])


def test_training_losses_stand_for_validations_that_were_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = drawn(monkeypatch)
    train = {"train/loss": ([10, 20], [4.0, 2.0])}
    rows = {"begun": [train] * 4, "ended": [{**train, "val/nll": ([20], [1.0])}] * 4}
    figures.loss_curves(rows, tmp_path / "x.png")
    assert [list(line.get_ydata()) for line in kept[0].axes[0].lines] == [[4.0, 2.0], [4.0, 2.0], [1.0]]
    assert [text.get_text() for text in kept[0].axes[0].get_legend().get_texts()] == ["begun", "ended"]
    rows["ended"][0]["val/nll"] = ([10, 20], [2.0, 1.0])
    figures.loss_curves(rows, tmp_path / "x.png")
    assert [list(line.get_ydata()) for line in kept[1].axes[0].lines] == [[2.0, 1.0]]


@pytest.mark.parametrize(
    ("name", "line"),
    [("sm_t128", "sm"), ("binary_T8", "binary"), ("sm_nfe_1_4", "sm"), ("k1", "k1"), ("p10", "p10"), ("sm_half", "sm")],
)
def test_what_is_set_apart_from_a_name_is_a_point_of_its_line(name: str, line: str) -> None:
    assert plot_points.family(Row(name, {})) == line


def test_lines_differ_in_colour_and_dashes() -> None:
    looks = [(style["color"], str(style["linestyle"])) for style in map(figures.look, range(28))]
    assert len(set(looks)) == 28
    assert all(looks[i][0] != looks[i + 1][0] and looks[i][1] != looks[i + 1][1] for i in range(27))


@pytest.mark.parametrize("kind", figures.FORMATS)
def test_files_are_whole_and_the_same_each_time(tmp_path: Path, kind: str) -> None:
    points = {"soft": [figures.Point(1, 2, 0.1, 0.2, "T = 1"), figures.Point(100, 3)], "binary": [figures.Point(3, 4)]}
    out = tmp_path / "new" / f"x.{kind}"
    contents = []
    for _ in range(2):
        figures.point_plot(points, figures.Axis("x", log=True), figures.Axis("y", log=True), out)
        contents.append(out.read_bytes())
    assert contents[0] == contents[1]
    assert contents[0][:5] in (b"\x89PNG\r", b"%PDF-", b"<?xml")
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    points = {"soft": [figures.Point(1, 2)]}
    with pytest.raises(UserError, match=r"x\.png: cannot be written"):
        figures.point_plot(points, figures.Axis("x"), figures.Axis("y"), tmp_path / "file" / "x.png")
    with pytest.raises(UserError, match=r"x\.gif: no such format; choose one of png, pdf, svg"):
        figures.point_plot(points, figures.Axis("x"), figures.Axis("y"), tmp_path / "x.gif")


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(experiments, "EXPERIMENTS", make_experiment(tmp_path / "experiments"))
    runs = Path("runs")
    assert cli.main(["plot", "toy"]) == 2
    err = capsys.readouterr().err
    assert "not drawn: accuracy: no run has an accuracy" in err
    assert "not drawn: loss: no run logged train/loss or val/nll" in err
    assert err.endswith("error: toy: nothing to draw in runs; run it first: smd run toy\n")
    for row in ("pretrain", "soft"):
        make_metrics(make_run(runs, row), 0, [HEADER, "0,,,,10,3.0,,", "0,,,,20,2.5,2.9,18"])
    assert cli.main(["plot", "toy"]) == 0
    written = capsys.readouterr().out.split()
    assert "runs/toy/plots/throughput.png" in written
    assert "runs/toy/plots/loss.png" in written
    assert "runs/toy/plots/lambda.png" in written
    assert all(Path(path).is_file() for path in written)
    assert cli.main(["plot", "runs/toy/soft"]) == 0
    assert cli.main(["plot", "runs/toy"]) == 2
    assert "runs/toy: neither a run folder (with config.yaml) nor an experiment (toy)" in capsys.readouterr().err
    assert cli.main(["plot", str(make_run(runs, "binary"))]) == 2
    assert "has logged nothing to draw" in capsys.readouterr().err
