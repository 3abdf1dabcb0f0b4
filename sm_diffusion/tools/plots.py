"""`smd plot`: loss curves, and lambda against entropy as it started and as it was learned. PNG, made for print."""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from sm_diffusion.evaluation.results import read_results
from sm_diffusion.tools import RUNS, list_experiments, load_experiment, seed_folders
from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HELP = "draw loss curves and the learned lambda(entropy) of a run or an experiment"
EXAMPLES = """
smd plot quickstart
smd plot runs/quickstart/continue_sm
smd plot quickstart --runs /tmp/smoke
"""
# Okabe and Ito's palette without its yellow: told apart by every kind of colour vision. Dashes tell them apart in grey.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))
TRAIN, VALIDATION = "train/loss", "val/nll"
UNKNOWN_VOCABULARY = 50_258
Series = dict[str, tuple[list[int], list[float]]]


class Omegas(NamedTuple):
    """omega_s in [0, 1], omega_a >= 0, omega_b <= 0 (nats)."""

    omega_s: float
    omega_a: float
    omega_b: float

    def strength(self, entropy: float) -> float:
        """lambda = omega_s * sigmoid(omega_a * (-H - omega_b)), H in nats."""
        exponent = -self.omega_a * (-entropy - self.omega_b)
        return self.omega_s / (1 + math.exp(min(exponent, 700.0)))


# ------------------------------------------------------------------------------------------------------------- read


def read_metrics(run_dir: Path) -> Series:
    """Logged values by name: (steps, values). Where a resumed run repeats steps, the later version is taken."""
    merged: Series = {}
    folders = [path for path in (run_dir / "metrics").glob("version_*") if path.name[8:].isdigit()]
    for folder in sorted(folders, key=lambda path: int(path.name[8:])):
        if not (folder / "metrics.csv").is_file():
            continue
        for name, (steps, values) in _read_csv(folder / "metrics.csv").items():
            old_steps, old_values = merged.get(name, ([], []))
            kept = [index for index, step in enumerate(old_steps) if step < steps[0]]
            merged[name] = ([old_steps[i] for i in kept] + steps, [old_values[i] for i in kept] + values)
    return merged


def _read_csv(path: Path) -> Series:
    series: Series = {}
    with path.open(newline="") as file:
        for number, line in enumerate(csv.DictReader(file), start=2):
            try:
                step = int(line["step"])
                found = {name: float(text) for name, text in line.items() if text and name not in ("step", "epoch")}
            except (KeyError, TypeError, ValueError):
                raise UserError(f"{path}: line {number} is not a line of metrics; delete it or the file") from None
            for name, value in found.items():
                steps, values = series.setdefault(name, ([], []))
                steps.append(step)
                values.append(value)
    return series


def read_config(run_dir: Path) -> dict[str, Any]:
    """The run's resolved configuration, from config.yaml or else results.json."""
    path = run_dir / "config.yaml"
    if path.is_file():
        try:
            config = yaml.safe_load(path.read_text())
        except yaml.YAMLError:
            raise UserError(f"{path}: not a YAML file") from None
    else:
        config = read_results(run_dir / "results.json").get("config")
    if not isinstance(config, dict):
        raise UserError(f"{run_dir}: holds no configuration; give a folder that train.py wrote")
    return config


def run_omegas(run_dir: Path) -> dict[str, Omegas]:
    """{"start": ..., "learned": ...} of a soft-masked run; empty for another; without "learned" before any log."""
    config = read_config(run_dir)
    if config["variant"]["name"] != "soft_masked":
        return {}
    start = config["soft_mask"]
    found = {"start": Omegas(start["omega_s"], start["omega_a"], start["omega_b"])}
    path = run_dir / "results.json"
    final = read_results(path).get("omegas") if path.is_file() else None
    if final:
        found["learned"] = Omegas(final["omega_s"], final["omega_a"], final["omega_b"])
    else:
        metrics = read_metrics(run_dir)
        logged = [metrics[name][1][-1] for name in ("omega/s", "omega/a", "omega/b") if name in metrics]
        if len(logged) == 3:
            found["learned"] = Omegas(*logged)
    return found


def run_vocabulary(run_dir: Path) -> int:
    """V of the run's tokenizer, for the axis of entropies."""
    from sm_diffusion.config.schema import TokenizerConfig
    from sm_diffusion.tools.plan import vocabulary

    try:
        return vocabulary(TokenizerConfig(**read_config(run_dir)["data"]["tokenizer"]))
    except UserError:
        return UNKNOWN_VOCABULARY


# ------------------------------------------------------------------------------------------------------------- draw


def loss_curve(run_dirs: Sequence[Path], out: Path) -> Path:
    """Training loss (thin) and validation NLL (thick, dots) against optimizer steps, one colour a run; to `out`."""
    from matplotlib.ticker import MaxNLocator

    def draw(axes: Axes) -> None:
        for index, run_dir in enumerate(run_dirs):
            metrics = read_metrics(run_dir)
            color, dashes = COLORS[index % len(COLORS)], DASHES[index % len(DASHES)]
            label = run_dir.name
            if TRAIN in metrics:
                text = f"{label}, training" if VALIDATION not in metrics or len(run_dirs) == 1 else None
                dot = "." if len(metrics[TRAIN][0]) == 1 else ""
                axes.plot(*metrics[TRAIN], color=color, linewidth=0.8, alpha=0.45, marker=dot, label=text)
            if VALIDATION in metrics:
                text = f"{label}, validation" if len(run_dirs) == 1 else label
                style = {"linestyle": dashes, "linewidth": 1.8, "marker": "o", "markersize": 3.5}
                axes.plot(*metrics[VALIDATION], color=color, label=text, **style)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("negative log-likelihood bound, nats a token")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.margins(x=0.02)
        if len(run_dirs) > 1:
            axes.set_title("thick: validation, thin: training", fontsize=9)

    return _save(draw, out)


def lambda_curve(omegas: Mapping[str, Omegas], vocab_size: int, out: Path) -> Path:
    """lambda against the entropy of the prediction, 0 to log V nats, one line for each named set of omegas."""
    top = math.log(vocab_size)
    entropies = [top * index / 400 for index in range(401)]

    def draw(axes: Axes) -> None:
        for index, (label, values) in enumerate(omegas.items()):
            text = f"{label}: $\\omega_s$ {values.omega_s:.3g}, $\\omega_a$ {values.omega_a:.3g}, "
            text += f"$\\omega_b$ {values.omega_b:.3g}"
            style = {"color": COLORS[index % len(COLORS)], "linestyle": DASHES[index % len(DASHES)], "linewidth": 1.8}
            axes.plot(entropies, [values.strength(entropy) for entropy in entropies], label=text, **style)
        axes.set_xlabel(f"entropy of the prediction, nats (log V = {top:.2f})")
        axes.set_ylabel("$\\lambda$, share of the predicted tokens")
        axes.set_xlim(0, top)
        axes.set_ylim(-0.02, 1.02)

    return _save(draw, out)


def _save(draw: Any, out: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=9)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(out, dpi=160)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); free space or choose another folder") from None
    return out


# ---------------------------------------------------------------------------------------------------- of run folders


def save_run_plots(run_dir: Path) -> list[Path]:
    """Draw what there is to draw of one run into its `plots` folder; the files written."""
    files = []
    if {TRAIN, VALIDATION} & set(read_metrics(run_dir)):
        files.append(loss_curve([run_dir], run_dir / "plots" / "loss.png"))
    if omegas := run_omegas(run_dir):
        files.append(lambda_curve(omegas, run_vocabulary(run_dir), run_dir / "plots" / "lambda.png"))
    return files


def save_experiment_plots(name: str, runs: Path) -> list[Path]:
    """The own-seed runs of an experiment in common figures, in `<runs>/<name>/plots`, and each run's own."""
    experiment = load_experiment(name)
    found = [folders[0] for row in experiment.rows if (folders := seed_folders(name, row, runs=runs))]
    drawn = [run_dir for run_dir in found if read_metrics(run_dir)]
    if not drawn:
        raise UserError(f"{runs / name}: holds no run with metrics; run it first: smd run {name}")
    files = [path for run_dir in drawn for path in save_run_plots(run_dir)]
    files.append(loss_curve(drawn, runs / name / "plots" / "loss.png"))
    learned = {path.name: omegas["learned"] for path in drawn if "learned" in (omegas := run_omegas(path))}
    if learned:
        vocab_size = max(run_vocabulary(path) for path in drawn if path.name in learned)
        files.append(lambda_curve(learned, vocab_size, runs / name / "plots" / "lambda.png"))
    return files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", help="a run folder, or the name of an experiment")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR", help=f"where runs lie, default {RUNS}/")


def run(args: argparse.Namespace) -> int:
    folder = Path(args.target)
    if args.target in list_experiments():
        files = save_experiment_plots(args.target, args.runs)
    elif (folder / "config.yaml").is_file() or (folder / "results.json").is_file():
        files = save_run_plots(folder)
    else:
        names = ", ".join(list_experiments()) or "none"
        raise UserError(f"{args.target}: neither a run folder (with config.yaml) nor an experiment ({names})")
    if not files:
        raise UserError(f"{args.target}: has logged nothing to draw; train with logger.csv=true")
    print("\n".join(map(str, files)))
    return 0
