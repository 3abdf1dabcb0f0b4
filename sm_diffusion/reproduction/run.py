"""Run what an experiment is missing, in the order its rows depend on one another. A second call does
nothing; an interrupted one is continued from the last checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from sm_diffusion.reproduction.experiment import Experiment
from sm_diffusion.reproduction.rows import RowRun
from sm_diffusion.reproduction.state import State
from sm_diffusion.reproduction.workers import Processes, Terminal, Workers, call, log_of, sigterm_as_exit
from sm_diffusion.training.run_folder import RunFolder
from sm_diffusion.types import UserError

# -------------------------------------------------------------------------------------------------------------- run


def selected(planned: Sequence[RowRun], only: Sequence[str], experiment: Experiment) -> list[RowRun]:
    """The runs of the named rows; without names all of them, and the runs of other experiments they start from."""
    if unknown := [row for row in only if row not in experiment.rows]:
        raise UserError(f"--only {unknown[0]}: no such row; choose from {', '.join(experiment.rows)}")
    return [item for item in planned if not only or (item.experiment == experiment.name and item.row in only)]


def execute(
    chosen: Sequence[RowRun],
    planned: Sequence[RowRun],
    *,
    name: str,
    overwrite: bool,
    workers: Workers,
    launcher: str | None = None,
) -> None:
    """Run what is not done, each run once what it starts from is done. After a failure nothing new is started.

    name: of the experiment. Raises UserError at the first run that cannot be run or does not end well.
    """
    _refuse_changed(chosen, overwrite=overwrite)
    states = {item.folder: item.state for item in planned}
    pending = _pending(chosen, states)
    again: set[Path] = set()
    running: dict[Path, RowRun] = {}
    failures: list[str] = []
    try:
        while running or (pending and not failures):
            ready = [item for item in pending if item.needs is None or states[item.needs] is State.DONE]
            for item in ready[: workers.slots - len(running)] if not failures else []:
                pending.remove(item)
                if item.needs in again:
                    item = dataclasses.replace(item, state=State.STALE)
                if item.state in (State.CHANGED, State.STALE):
                    again.add(item.folder)
                    _mark_stale(item, planned)
                _announce(item, launcher, workers)
                running[item.folder] = item
                workers.start(item.folder, item.command(launcher))
            folder, status, log = workers.wait()
            item = running.pop(folder)
            if problem := _problem(item, status, name):
                failures.append(problem + (f"\n{log}\n  ({log_of(folder)})" if log else ""))
            else:
                RunFolder(folder).stale_mark.unlink(missing_ok=True)
                states[folder] = State.DONE
                if workers.slots > 1:
                    print(f"{folder}: done", flush=True)
    finally:
        workers.stop()
    if failures:
        raise UserError("\n".join(failures))


def _refuse_changed(chosen: Sequence[RowRun], *, overwrite: bool) -> None:
    if not overwrite and (changed := [item for item in chosen if item.state is State.CHANGED]):
        first = changed[0]
        raise UserError(
            f"{first.folder}: holds a run with other settings ({'; '.join(first.differences[:4])}); "
            "keep it by choosing another folder with --runs, or replace it with --overwrite"
        )


def _pending(chosen: Sequence[RowRun], states: dict[Path, State]) -> list[RowRun]:
    """Runs to be made, those that must be made again with what they start from included; says which are done."""
    pending: dict[Path, RowRun] = {}
    for item in chosen:
        if item.state is State.DONE and not (item.needs in pending and _is_replaced(pending[item.needs])):
            print(f"{item.folder}: done", flush=True)
            continue
        if item.needs is not None and states[item.needs] is not State.DONE and item.needs not in pending:
            where = f"{item.needs}, which is {states[item.needs].value}"
            raise UserError(f"{item.folder}: starts from {where}; run that row first, or leave out --only")
        pending[item.folder] = item
        states[item.folder] = State.MISSING
    return list(pending.values())


def _is_replaced(item: RowRun) -> bool:
    """Of a pending run; one that is done is pending only because what it starts from is replaced."""
    return item.state in (State.CHANGED, State.STALE, State.DONE)


def _mark_stale(item: RowRun, planned: Sequence[RowRun]) -> None:
    """Leave a mark in every run that starts from this one, so that an interruption forgets none of them."""
    for other in planned:
        if other.needs == item.folder and other.folder.is_dir():
            RunFolder(other.folder).stale_mark.touch()
            _mark_stale(other, planned)


def _announce(item: RowRun, launcher: str | None, workers: Workers) -> None:
    log = f"\n  log: {log_of(item.folder)}" if workers.slots > 1 else ""
    print(f"{item.folder}: {item.state.value}\n$ {shlex.join(item.command(launcher))}{log}", flush=True)


def _problem(item: RowRun, status: int, name: str) -> str | None:
    """What went wrong with a run that ended, or None."""
    again = f'then call "smd run {name}" again: what is finished is kept, this row is continued'
    if status != 0:
        return f"row {item.row} (seed {item.seed}) failed, status {status}: mend what it says above, {again}"
    results = RunFolder(item.folder).results
    if not results.is_file():
        return f"row {item.row} (seed {item.seed}) wrote no {results}; {again}"
    return None


def written_files(chosen: Sequence[RowRun]) -> list[Path]:
    """What people look for in the run folders."""
    return [path for item in chosen for path in RunFolder(item.folder).shown()]


def workers_of(jobs: int | None, launcher: str | None, num_runs: int) -> Workers:
    """UserError for fewer than one job, or an unknown launcher."""
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: give at least 1")
    if launcher is not None:
        from sm_diffusion.config.sweep import check_launcher

        check_launcher(launcher)
    slots = jobs or (max(1, num_runs) if launcher else 1)
    if slots == 1:
        return Terminal(call)
    return Processes(slots, threads=max(1, (os.cpu_count() or 1) // slots))


def dry_run(chosen: Sequence[RowRun], *, overwrite: bool, launcher: str | None) -> None:
    """Print where each run stands and the command that would make it."""
    for item in chosen:
        print(f"{item.folder}: {item.state.value}", *(f"  {line}" for line in item.differences), sep="\n")
        if item.state is State.CHANGED and not overwrite:
            print("  refused without --overwrite")
        elif item.state is not State.DONE:
            print(f"  $ {shlex.join(item.command(launcher))}")


@contextlib.contextmanager
def locked(chosen: Sequence[RowRun], runs: Path) -> Iterator[None]:
    """Holds the folders of the experiments that the runs belong to, so that no other `smd run` works there."""
    with contextlib.ExitStack() as stack:
        for name in sorted({item.experiment for item in chosen}):
            folder = runs / name
            try:
                folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FileLock(folder / ".lock", timeout=0))
            except Timeout:
                raise UserError(f"{folder}: another smd run is at work there; wait for its end") from None
            except OSError as error:
                raise UserError(f"{folder}: cannot be written ({error.strerror}); set another --runs folder") from None
        stack.enter_context(sigterm_as_exit())
        yield
