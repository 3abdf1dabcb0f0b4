"""Figures for print: one palette, dashes and marks that differ in grey too, files that are whole or absent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sm_diffusion.diffusion.omegas import Omegas
from sm_diffusion.files import write_whole
from sm_diffusion.reproduction.run_logs import Series
from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "pdf", "svg")
# Okabe and Ito's palette without its yellow: told apart by every kind of colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
# 7 colours and 4 dashes: 28 lines before one repeats.
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1)), (0, (6, 1.5, 1.5, 1.5)))
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
TRAIN, VALIDATION = "train/loss", "val/nll"
OMEGAS = {"omega/s": r"$\omega_s$", "omega/a": r"$\omega_a$", "omega/b": r"$\omega_b$, nats"}
MOST_THIN = 3  # runs up to which training losses are drawn too
DPI = 160
Groups = Mapping[str, Sequence[Series]]  # row -> the logs of its seeds


def look(index: int) -> dict[str, Any]:
    """Colour and dashes of line `index`."""
    return {"color": COLORS[index % len(COLORS)], "linestyle": DASHES[index % len(DASHES)]}


# ----------------------------------------------------------------------------------------------------- against steps


def loss_curves(groups: Groups, out: Path) -> Path:
    """Validation NLL (thick; mean over seeds, band: their range) and training loss (thin): of each of few runs; of each
    row, as the mean over its seeds, where no run was validated on its way."""
    thin = sum(map(len, groups.values())) <= MOST_THIN
    on_the_way = any(len(log.get(VALIDATION, ([], []))[0]) > 1 for logs in groups.values() for log in logs)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        lowest: list[float] = []
        for index, (label, logs) in enumerate(groups.items()):
            for log in logs if thin else []:
                if TRAIN in log:
                    dot = "." if len(log[TRAIN][0]) == 1 else ""
                    axes.plot(*log[TRAIN], color=look(index)["color"], linewidth=0.7, alpha=0.45, marker=dot)
                    lowest += log[TRAIN][1]
            if not thin and not on_the_way:
                training = [log[TRAIN] for log in logs if TRAIN in log]
                unnamed = any(VALIDATION in log for log in logs)  # that line will have the name
                name = "" if unnamed else label
                lowest += _seed_line(axes, training, name, index, mark="", linewidth=0.9, band=False)
            lowest += _seed_line(axes, [log[VALIDATION] for log in logs if VALIDATION in log], label, index)
        _steps_axis(axes)
        axes.set_ylabel("negative log-likelihood bound, nats a token")
        _cut_start(axes, lowest)
        seeds = max(len(logs) for logs in groups.values())
        words = ["thick: validation" + (", mean and range over seeds" if seeds > 1 else "")]
        words += ["thin: training"] if thin else [] if on_the_way else ["thin: training, mean over seeds"]
        axes.set_title("; ".join(words), fontsize=9)
        finish(axes)

    return save(draw, out)


def _cut_start(axes: Axes, values: Sequence[float]) -> None:
    """The first steps of a run from scratch would flatten all that follows: what lies far above is cut off."""
    finite = sorted(value for value in values if math.isfinite(value))
    if len(finite) < 10:
        return
    low, most, high = finite[0], finite[int(0.95 * (len(finite) - 1))], finite[-1]
    if high - low > 3 * (most - low) > 0:
        axes.set_ylim(low - 0.05 * (most - low), most + 0.35 * (most - low))


def omega_curves(groups: Groups, out: Path) -> Path:
    """The three omegas against optimizer steps, a panel each."""

    def draw(figure: Figure) -> None:
        panels = figure.subplots(len(OMEGAS), 1, sharex=True)
        for axes, (key, title) in zip(panels, OMEGAS.items(), strict=True):
            for index, (label, logs) in enumerate(groups.items()):
                _seed_line(axes, [log[key] for log in logs if key in log], label, index, mark="")
            axes.set_ylabel(title)
            finish(axes, legend=key == "omega/s")
        panels[0].set_ylim(-0.03, 1.03)
        _steps_axis(panels[-1])

    return save(draw, out, size=(6.4, 6.0))


def _seed_line(
    axes: Axes,
    curves: Sequence[tuple[list[int], list[float]]],
    label: str,
    index: int,
    mark: str = "o",
    linewidth: float = 1.8,
    band: bool = True,
) -> list[float]:
    """Mean over the curves at the steps all have, else of their ends, and the range as a band; the values drawn."""
    if not curves:
        return []
    by_step = [dict(zip(*curve, strict=True)) for curve in curves]
    steps = [step for step in by_step[0] if all(step in curve for curve in by_step)]
    values = [[curve[step] for curve in by_step] for step in steps]
    if not steps:  # runs that end by a budget of compute end at steps of their own
        lasts = [max(curve) for curve in by_step]
        steps = [round(sum(lasts) / len(lasts))]
        values = [[curve[step] for curve, step in zip(by_step, lasts, strict=True)]]
    means = [math.fsum(group) / len(group) for group in values]
    few = mark if len(steps) <= 40 else ""
    axes.plot(steps, means, label=label or None, linewidth=linewidth, marker=few, markersize=3.5, **look(index))
    if len(curves) > 1 and band:
        low, high = [min(group) for group in values], [max(group) for group in values]
        axes.fill_between(steps, low, high, color=look(index)["color"], alpha=0.15, linewidth=0)
    return means


def _steps_axis(axes: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("optimizer step")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    axes.margins(x=0.02)


# ------------------------------------------------------------------------------------------------------------ lambda


def lambda_curves(omegas: Mapping[str, Sequence[Omegas]], vocab_size: int, out: Path) -> Path:
    """lambda against the entropy of the prediction, 0 to log V nats; mean and range over the omegas of one label."""
    top = math.log(vocab_size)
    entropies = [top * index / 400 for index in range(401)]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (label, sets) in enumerate(omegas.items()):
            mean = [math.fsum(part) / len(sets) for part in zip(*sets, strict=True)]
            text = f"{label}: $\\omega_s$ {mean[0]:.3g}, $\\omega_a$ {mean[1]:.3g}, $\\omega_b$ {mean[2]:.3g}"
            lines = [[one.strength(entropy) for entropy in entropies] for one in sets]
            columns = list(zip(*lines, strict=True))
            axes.plot(
                entropies, [sum(column) / len(sets) for column in columns], label=text, linewidth=1.8, **look(index)
            )
            if len(sets) > 1:
                low, high = [min(column) for column in columns], [max(column) for column in columns]
                axes.fill_between(entropies, low, high, color=look(index)["color"], alpha=0.15, linewidth=0)
        axes.set_xlabel(f"entropy of the prediction, nats (log V = {top:.2f})")
        axes.set_ylabel(r"$\lambda$, share of the predicted tokens")
        axes.set_xlim(0, top)
        axes.set_ylim(-0.02, 1.02)
        finish(axes)

    return save(draw, out)


# ------------------------------------------------------------------------------------------------------------ points


class Point(NamedTuple):
    """Means over seeds, their standard deviations (0 for one seed), and what is written beside the mark."""

    x: float
    y: float
    x_std: float = 0.0
    y_std: float = 0.0
    note: str = ""


class Axis(NamedTuple):
    title: str
    log: bool = False


def point_plot(lines: Mapping[str, Sequence[Point]], x: Axis, y: Axis, out: Path) -> Path:
    """One line a label through its points, in the given order; bars: a standard deviation over seeds each way."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for index, (label, points) in enumerate(lines.items()):
            style = look(index) | ({} if len(points) > 1 else {"linestyle": ""})
            axes.errorbar(
                [point.x for point in points],
                [point.y for point in points],
                xerr=[point.x_std for point in points] if any(point.x_std for point in points) else None,
                yerr=[point.y_std for point in points] if any(point.y_std for point in points) else None,
                label=label,
                marker=MARKS[index % len(MARKS)],
                markersize=6,
                linewidth=1.5,
                elinewidth=0.9,
                capsize=2.5,
                **style,
            )
            for point in points:
                if point.note:
                    place: dict[str, Any] = {"textcoords": "offset points", "xytext": (6, 5), "fontsize": 8}
                    axes.annotate(point.note, (point.x, point.y), color=style["color"], **place)
        axes.set_xlabel(x.title)
        axes.set_ylabel(y.title)
        every = [point for points in lines.values() for point in points]
        _scale(axes.xaxis, x, [point.x for point in every])
        _scale(axes.yaxis, y, [point.y for point in every])
        axes.margins(0.12)
        finish(axes)

    return save(draw, out)


def _scale(axis: Any, wanted: Axis, values: Sequence[float]) -> None:
    """A logarithmic axis with plain numbers, where the values are positive and span enough for one."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not wanted.log or min(values) <= 0 or max(values) < 2 * min(values):
        return
    setter = {"x": axis.axes.set_xscale, "y": axis.axes.set_yscale}[axis.axis_name]
    setter("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())


# ------------------------------------------------------------------------------------------------------------- files


def finish(axes: Axes, *, legend: bool = True) -> None:
    """Grid, frame and legend as in every figure."""
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    labels = axes.get_legend_handles_labels()[1]
    if legend and labels:
        columns = 2 if len(labels) > 6 else 1
        axes.legend(frameon=False, fontsize=9 if columns == 1 else 8, ncols=columns, handlelength=2.8)


def save(draw: Callable[[Figure], None], out: Path, *, size: tuple[float, float] = (6.4, 4.0)) -> Path:
    """Draw and write `out` (.png, .pdf or .svg) under another name first; the same data give the same bytes."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kind = out.suffix.lstrip(".")
    dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    if kind not in dates:
        raise UserError(f"{out}: no such format; choose one of {', '.join(FORMATS)}")
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "sm_diffusion"}):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        metadata = dates[kind]
        return write_whole(out, lambda path: figure.savefig(path, format=kind, dpi=DPI, metadata=metadata))
