"""`smd run`: run what an experiment is missing, in the order its rows depend on one another. A second call does
nothing; an interrupted one is continued from the last checkpoint."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sm_diffusion.tools import ROOT, RUNS, STALE_MARK, Experiment, State, load_experiment, run_folder, state_of
from sm_diffusion.tools.table import report
from sm_diffusion.types import UserError

HELP = "train and evaluate the rows of an experiment that are missing, then print its table"
EXAMPLES = """
smd run quickstart
smd run quickstart --dry-run
smd run quickstart --only pretrain
smd run quickstart --seeds 1,2,3
smd run quickstart --runs /tmp/smoke trainer.max_steps=20
"""
GRACE_SECONDS = 60  # that an interrupted program gets to write a checkpoint
Compose = Callable[[Sequence[str]], Mapping[str, Any]]


@dataclass(frozen=True)
class RowRun:
    """One training run. overrides: what train.py is given. needs: the run folder it starts from, or None.
    differences: `key: old -> new`, when the folder holds a run of another configuration."""

    row: str
    seed: int
    folder: Path
    overrides: tuple[str, ...]
    needs: Path | None
    state: State
    differences: tuple[str, ...] = ()

    def command(self) -> list[str]:
        """The command line that brings it to its end from where it stands."""
        extra = {
            State.INTERRUPTED: ["ckpt_path=last"],
            State.RESTART: ["overwrite=true"],
            State.CHANGED: ["overwrite=true"],
            State.STALE: ["overwrite=true"],
        }
        return [sys.executable, str(ROOT / "train.py"), *self.overrides, *extra.get(self.state, [])]


# ------------------------------------------------------------------------------------------------------------- plan


def plan_runs(
    experiment: Experiment,
    *,
    seeds: Sequence[int] = (),
    extra: Sequence[str] = (),
    runs: Path = RUNS,
    compose: Compose | None = None,
) -> list[RowRun]:
    """Every run of the experiment and its state, each after the one it starts from.

    seeds: empty for each row's own. extra: overrides for all rows. compose: overrides -> configuration.
    """
    compose = compose or _compose_train
    planned = []
    for row in experiment.rows:
        base = [f"experiments={experiment.name}/{row}", *extra]
        own = compose(base)
        for seed in dict.fromkeys(seeds) or [int(own["seed"])]:
            suffix = None if seed == own["seed"] else seed
            planned.append(_plan_run(experiment, row, own=own, base=base, seed=suffix, runs=runs, compose=compose))
    return _ordered(planned)


def _compose_train(overrides: Sequence[str]) -> Mapping[str, Any]:
    from sm_diffusion.tools.config_cmd import composed

    return composed("train", overrides)


def _plan_run(
    experiment: Experiment,
    row: str,
    *,
    own: Mapping[str, Any],
    base: Sequence[str],
    seed: int | None,
    runs: Path,
    compose: Compose,
) -> RowRun:
    """seed: None for the row's own, whose command line is then the shortest."""
    folder = run_folder(experiment.name, row, seed=seed, runs=runs)
    overrides = list(base)
    if seed is not None:
        overrides += [f"seed={seed}", f"name={experiment.name}/{folder.name}"]
    config = own if seed is None else compose(overrides)
    if Path(config["output_dir"]) != folder:
        overrides.append(f"output_dir={quoted(str(folder))}")
    start = _start(experiment, own["init_from"], seed=seed, runs=runs)
    if start is not None and str(start[1]) != own["init_from"]:
        overrides.append(f"init_from={quoted(str(start[1]))}")
    if len(overrides) > len(base):
        config = compose(overrides)
    state, differences = state_of(folder, config)
    return RowRun(
        row=row,
        seed=int(config["seed"]),
        folder=folder,
        overrides=tuple(overrides),
        needs=start[0] if start else None,
        state=state,
        differences=tuple(differences),
    )


def _start(experiment: Experiment, init_from: str | None, *, seed: int | None, runs: Path) -> tuple[Path, Path] | None:
    """(run folder, checkpoint) that a row starts from when that is another row of the experiment, at its seed."""
    prefix = (*RUNS.parts, experiment.name)
    parts = Path(init_from).parts if init_from is not None else ()
    if parts[: len(prefix)] != prefix or len(parts) <= len(prefix) or parts[len(prefix)] not in experiment.rows:
        return None
    folder = run_folder(experiment.name, parts[len(prefix)], seed=seed, runs=runs)
    return folder, folder.joinpath(*parts[len(prefix) + 1 :])


def quoted(value: str) -> str:
    """A value as Hydra's command-line grammar reads it back."""
    if re.fullmatch(r"[\w./+-]+", value):
        return value
    # Hydra takes a backslash literally unless it stands before a quote.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value) + "'"


def _ordered(planned: Sequence[RowRun]) -> list[RowRun]:
    """Each run after the one it starts from, otherwise in the given order."""
    waiting, ordered = list(planned), []
    while waiting:
        blocked = {item.folder for item in waiting}
        ready = next((item for item in waiting if item.needs not in blocked), None)
        if ready is None:
            raise UserError(f"rows start from one another in a circle: {', '.join(item.row for item in waiting)}")
        waiting.remove(ready)
        ordered.append(ready)
    return ordered


# -------------------------------------------------------------------------------------------------------------- run


def selected(planned: Sequence[RowRun], only: Sequence[str], experiment: Experiment) -> list[RowRun]:
    """The runs of the named rows, all of them without names."""
    if unknown := [row for row in only if row not in experiment.rows]:
        raise UserError(f"--only {unknown[0]}: no such row; choose from {', '.join(experiment.rows)}")
    return [item for item in planned if not only or item.row in only]


def execute(chosen: Sequence[RowRun], planned: Sequence[RowRun], *, experiment: Experiment, overwrite: bool) -> None:
    """Run what is not done, one after another; UserError at the first that cannot or does not end well."""
    if not overwrite and (changed := [item for item in chosen if item.state is State.CHANGED]):
        first = changed[0]
        raise UserError(
            f"{first.folder}: holds a run with other settings ({'; '.join(first.differences[:4])}); "
            "keep it by choosing another folder with --runs, or replace it with --overwrite"
        )
    states = {item.folder: item.state for item in planned}
    again: set[Path] = set()
    for item in chosen:
        if item.needs in again:
            item = dataclasses.replace(item, state=State.STALE)
        if item.state is State.DONE:
            print(f"{item.folder}: done", flush=True)
            continue
        if item.needs is not None and states[item.needs] is not State.DONE:
            where = f"{item.needs}, which is {states[item.needs].value}"
            raise UserError(f"{item.folder}: starts from {where}; run that row first, or leave out --only")
        if item.state in (State.CHANGED, State.STALE):
            again.add(item.folder)
            _mark_stale(item, planned)
        _run_one(item, experiment)
        states[item.folder] = State.DONE


def _mark_stale(item: RowRun, planned: Sequence[RowRun]) -> None:
    """Leave a mark in every run that starts from this one, so that an interruption forgets none of them."""
    for other in planned:
        if other.needs == item.folder and other.folder.is_dir():
            (other.folder / STALE_MARK).touch()
            _mark_stale(other, planned)


def _run_one(item: RowRun, experiment: Experiment) -> None:
    command = item.command()
    print(f"{item.folder}: {item.state.value}\n$ {shlex.join(command)}", flush=True)
    status = call(command)
    again = f'then call "smd run {experiment.name}" again: what is finished is kept, this row is continued'
    if status != 0:
        raise UserError(f"row {item.row} (seed {item.seed}) failed, status {status}: mend what it says above, {again}")
    (item.folder / STALE_MARK).unlink(missing_ok=True)
    if not (item.folder / "results.json").is_file():
        raise UserError(f"row {item.row} (seed {item.seed}) wrote no {item.folder / 'results.json'}; {again}")


def call(command: Sequence[str]) -> int:
    """Run a program on this terminal. An interruption or SIGTERM is passed on and its orderly end waited for."""
    with subprocess.Popen(command) as process:
        previous = signal.signal(signal.SIGTERM, _terminated)
        try:
            return process.wait()
        except KeyboardInterrupt:
            # A terminal has interrupted the program as well; give it time to write its checkpoint.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE_SECONDS)
            raise
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=GRACE_SECONDS)
                process.kill()
            signal.signal(signal.SIGTERM, previous)


def _terminated(number: int, frame: Any) -> None:
    raise SystemExit(128 + number)


def written_files(chosen: Sequence[RowRun]) -> list[Path]:
    """What people look for in the run folders."""
    patterns = ("results.json", "plots/*.png", "checkpoints/last.ckpt")
    return [path for item in chosen for pattern in patterns for path in sorted(item.folder.glob(pattern))]


def seeds_of(text: str) -> list[int]:
    """1,2,3 -> [1, 2, 3]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: give numbers separated by commas, for example 1,2,3") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("experiment", help="a folder of experiments/")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="for every row, as for train.py")
    parser.add_argument("--dry-run", action="store_true", help="say what would run, and run nothing")
    parser.add_argument("--only", action="append", default=[], metavar="ROW", help="this row; may be repeated")
    parser.add_argument("--seeds", type=seeds_of, default=[], metavar="1,2,3", help="default: each row's own seed")
    parser.add_argument("--overwrite", action="store_true", help="replace runs made with other settings")
    parser.add_argument("--runs", type=Path, default=RUNS, metavar="DIR", help=f"where runs lie, default {RUNS}/")


def run(args: argparse.Namespace) -> int:
    experiment = load_experiment(args.experiment)
    planned = plan_runs(experiment, seeds=args.seeds, extra=args.overrides, runs=args.runs)
    chosen = selected(planned, args.only, experiment)
    if args.dry_run:
        for item in chosen:
            print(f"{item.folder}: {item.state.value}", *(f"  {line}" for line in item.differences), sep="\n")
            if item.state is State.CHANGED and not args.overwrite:
                print("  refused without --overwrite")
            elif item.state is not State.DONE:
                print(f"  $ {shlex.join(item.command())}")
        return 0
    lock = args.runs / experiment.name / ".lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock, timeout=0):
            execute(chosen, planned, experiment=experiment, overwrite=args.overwrite)
    except Timeout:
        raise UserError(f"{lock.parent}: another smd run is at work there; wait for its end") from None
    except OSError as error:
        raise UserError(f"{lock.parent}: cannot be written ({error.strerror}); set another --runs folder") from None
    print(f"\n{report(experiment, runs=args.runs)}\n\nfiles:")
    print("\n".join(f"  {path}" for path in written_files(chosen)))
    return 0
