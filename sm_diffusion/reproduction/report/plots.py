"""What the results and logs of a run or an experiment allow to draw, as files for print."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sm_diffusion.reproduction.collect import WANDB_PREFIX, check_source, collect, is_higher_better
from sm_diffusion.reproduction.collected import Collected
from sm_diffusion.reproduction.experiment import RUNS, Experiment, list_experiments, load_experiment
from sm_diffusion.reproduction.report.figures import (
    OMEGAS,
    TRAIN,
    VALIDATION,
    Axis,
    lambda_curves,
    loss_curves,
    omega_curves,
    point_plot,
)
from sm_diffusion.reproduction.report.points import accuracy_metrics, accuracy_over_nfe, frontier, throughput
from sm_diffusion.reproduction.run_logs import read_metrics, run_omegas, run_vocabulary
from sm_diffusion.training.run_folder import RunFolder
from sm_diffusion.types import UserError

PERPLEXITY = "generative perplexity (lower: more likely)"
TITLES = {
    "compute/tokens_per_second": "tokens a second, training",
    "val/ppl": "validation perplexity (lower is better)",
    "gen/ppl": PERPLEXITY,
    "gen/mauve": "MAUVE (higher is better)",
}


class NotDrawn(Exception):
    """There is nothing to draw; the message says what is missing."""


@dataclass(frozen=True)
class Source:
    """What figures are made of. folders: row -> run folders of its seeds, finished or not; none for W&B."""

    name: str
    collected: Collected
    folders: Mapping[str, Sequence[Path]]
    where: str

    def with_logs(self, *keys: str) -> dict[str, list[Path]]:
        """The rows whose folders logged any of the keys."""
        if self.where.startswith(WANDB_PREFIX):
            raise NotDrawn("it needs the run folders; W&B draws its own curves")
        kept = {
            label: found
            for label, paths in self.folders.items()
            if (found := [path for path in paths if set(keys) & set(read_metrics(path))])
        }
        if not kept:
            raise NotDrawn(f"no run logged {' or '.join(keys)}; train with logger.csv=true")
        return kept


def source_of(experiment: Experiment, where: str) -> Source:
    """An experiment's results and run folders."""
    collected = collect(experiment, where)
    folders: dict[str, list[Path]] = {}
    if not where.startswith(WANDB_PREFIX):
        for row in collected.rows:
            if row.places:
                folders[row.label] = [Path(row.places[seed]) for seed in sorted(row.places)]
            if row.unfinished:
                folders[f"{row.name} (unfinished)"] = [Path(place) for place in row.unfinished]
    return Source(experiment.name, collected, folders, where)


# ------------------------------------------------------------------------------------------------------------- kinds
# Each takes a source, a folder and a format, and returns the files it wrote or raises NotDrawn.


def _loss(source: Source, folder: Path, kind: str) -> list[Path]:
    groups = {label: list(map(read_metrics, paths)) for label, paths in source.with_logs(TRAIN, VALIDATION).items()}
    return [loss_curves(groups, folder / f"loss.{kind}")]


def _omegas(source: Source, folder: Path, kind: str) -> list[Path]:
    groups = {label: list(map(read_metrics, paths)) for label, paths in source.with_logs(*OMEGAS).items()}
    return [omega_curves(groups, folder / f"omegas.{kind}")]


def _lambda(source: Source, folder: Path, kind: str) -> list[Path]:
    if source.where.startswith(WANDB_PREFIX):
        raise NotDrawn("it needs the run folders")
    learned = {
        label: found
        for label, paths in source.folders.items()
        if (found := [omegas["learned"] for path in paths if "learned" in (omegas := run_omegas(path))])
    }
    if not learned:
        raise NotDrawn("no run is soft-masked and has logged or finished")
    sizes = [run_vocabulary(path) for label in learned for path in source.folders[label][:1]]
    return [lambda_curves(learned, max(sizes), folder / f"lambda.{kind}")]


def _accuracy(source: Source, folder: Path, kind: str) -> list[Path]:
    names = accuracy_metrics(source.collected)
    if not names:
        raise NotDrawn("no run has an accuracy (pass@k, acc, exact_match)")
    files = []
    for name in names:
        if lines := accuracy_over_nfe(source.collected, name):
            stem = "accuracy_nfe" if len(names) == 1 else f"accuracy_nfe_{name.replace('/', '_')}"
            x, y = Axis("network evaluations a sample", log=True), Axis(f"{name} (higher is better)")
            files.append(point_plot(lines, x, y, folder / f"{stem}.{kind}"))
    if not files:
        raise NotDrawn("no run with an accuracy says how many network evaluations it spent")
    return files


def _frontier(source: Source, folder: Path, kind: str) -> list[Path]:
    lines = frontier(source.collected)
    if not lines:
        raise NotDrawn("no run has both gen/ppl and gen/entropy; evaluate with evaluator=generative")
    x = Axis("unigram entropy of a sample, nats (higher: more varied)")
    return [point_plot(lines, x, Axis(PERPLEXITY, log=True), folder / f"frontier.{kind}")]


def _throughput(source: Source, folder: Path, kind: str) -> list[Path]:
    lines, x, y = throughput(source.collected)
    if not lines:
        raise NotDrawn("no finished run has both a quality and tokens a second")
    titles = [_axis_title(name) for name in (x, y)]
    return [point_plot(lines, Axis(titles[0], log=True), Axis(titles[1]), folder / f"throughput.{kind}")]


def _axis_title(name: str) -> str:
    if name in TITLES:
        return TITLES[name]
    group, _, last = name.rpartition("/")
    if last == "tokens_per_second":
        return f"tokens a second, sampling ({group})"
    return f"{name} ({'higher' if is_higher_better(name) else 'lower'} is better)"


KINDS: Mapping[str, Callable[[Source, Path, str], list[Path]]] = {
    "loss": _loss,
    "omegas": _omegas,
    "lambda": _lambda,
    "accuracy": _accuracy,
    "frontier": _frontier,
    "throughput": _throughput,
}


def draw_all(
    source: Source, folder: Path, kinds: Sequence[str] = (), formats: Sequence[str] = ("png",)
) -> tuple[list[Path], dict[str, str]]:
    """(files, why for each kind of figure that was not drawn). kinds: empty for all."""
    files: list[Path] = []
    reasons: dict[str, str] = {}
    for name in kinds or KINDS:
        try:
            files += [path for suffix in formats for path in KINDS[name](source, folder, suffix)]
        except NotDrawn as reason:
            reasons[name] = str(reason)
    return files, reasons


# -------------------------------------------------------------------------------------------------------- of one run


def save_run_plots(run_dir: Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Draw what there is to draw of one run into its `plots` folder; the files written."""
    logs, files = read_metrics(run_dir), []
    for kind in formats:
        folder = RunFolder(run_dir).plots
        if {TRAIN, VALIDATION} & set(logs):
            files.append(loss_curves({run_dir.name: [logs]}, folder / f"loss.{kind}"))
        if set(OMEGAS) & set(logs):
            files.append(omega_curves({run_dir.name: [logs]}, folder / f"omegas.{kind}"))
        if omegas := run_omegas(run_dir):
            named = {name: [values] for name, values in omegas.items()}
            files.append(lambda_curves(named, run_vocabulary(run_dir), folder / f"lambda.{kind}"))
    return files


# ------------------------------------------------------------------------------------------------------ of either kind


def draw_target(
    target: str, where: str, *, only: Sequence[str], formats: Sequence[str], out: Path | None
) -> tuple[list[Path], dict[str, str]]:
    """Figures of a run folder, or of an experiment whose runs are in `where`; as `draw_all`.

    Args:
        out: Folder of an experiment's figures; None: `plots` beside its runs.

    Raises:
        UserError: It is neither of them.
    """
    folder = Path(target)
    if target in list_experiments():
        beside = RunFolder((RUNS if where.startswith(WANDB_PREFIX) else Path(where)) / target).plots
        return draw_all(source_of(load_experiment(target), check_source(where)), out or beside, only, formats)
    run = RunFolder(folder)
    if not run.config.is_file() and not run.results.is_file():
        names = ", ".join(list_experiments()) or "none"
        raise UserError(f"{target}: neither a run folder (with config.yaml) nor an experiment ({names})")
    return save_run_plots(folder, formats), {}
