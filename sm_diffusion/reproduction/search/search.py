"""An Optuna study over a Hydra search space. Every trial is a run of train.py in a process of its own; a
hopeless one is stopped at a validation; a search that was stopped or killed goes on where it was."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shlex
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from sm_diffusion.evaluation.results import read_results
from sm_diffusion.paths import ROOT
from sm_diffusion.reproduction.collect import is_higher_better
from sm_diffusion.reproduction.programs import quoted
from sm_diffusion.reproduction.run_logs import read_metrics
from sm_diffusion.reproduction.search.records import (
    FAILED,
    FINISHED,
    RECORDS,
    RUNNING,
    STOPPED_EARLY,
    Record,
    ranked,
    read_records,
    summary,
    write_records,
)
from sm_diffusion.reproduction.search.sweep import check, refuse_own_keys
from sm_diffusion.reproduction.workers import Processes, sigterm_as_exit
from sm_diffusion.training.run_folder import RunFolder
from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import Trial

    from sm_diffusion.config.search_space import Parameter, Search

PRUNERS = ("median", "hyperband", "none")
POLL_SECONDS = 1.0
FAILURES_IN_A_ROW = 3  # after which the search gives up
PREEMPTED = 75  # status of a run that was asked to stop (training/preemption.py, which imports torch)


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What a study is asked for.

    metric: of a validation. pruner: of PRUNERS. startup: trials drawn at random first. seed: of the proposals.
    trials: those of earlier calls included. jobs: trials at once.
    """

    metric: str
    pruner: str
    startup: int
    seed: int
    trials: int
    jobs: int


def make_study(name: str, settings: StudySettings, *, earlier: int, min_steps: int, max_steps: int) -> Study:
    """An empty study. earlier: trials made by earlier calls."""
    try:
        import optuna
    except ImportError:
        raise UserError("smd search: optuna is not installed; pip install 'sm-diffusion[sweeps]'") from None
    optuna.logging.set_verbosity(logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # enqueue_trial, of old versions
    if settings.pruner == "median":
        pruner: optuna.pruners.BasePruner = optuna.pruners.MedianPruner(n_startup_trials=settings.startup)
    elif settings.pruner == "hyperband":
        pruner = optuna.pruners.HyperbandPruner(min_resource=min_steps, max_resource=max_steps)
    else:
        pruner = optuna.pruners.NopPruner()
    # With the seed it had, a sampler that starts again would propose its first points again.
    sampler = optuna.samplers.TPESampler(seed=settings.seed + earlier, n_startup_trials=settings.startup)
    direction = "maximize" if is_higher_better(settings.metric) else "minimize"
    return optuna.create_study(study_name=name, direction=direction, sampler=sampler, pruner=pruner)


def suggest(trial: Trial, parameter: Parameter) -> str:
    """A value of one searched key, as Hydra reads it."""
    spec = parameter.spec
    if not parameter.is_interval:
        return str(trial.suggest_categorical(parameter.key, list(parameter.probes)))
    log = "log" in spec["distribution"]
    if isinstance(spec["min"], int):
        return str(trial.suggest_int(parameter.key, spec["min"], spec["max"], log=log))
    return repr(trial.suggest_float(parameter.key, spec["min"], spec["max"], log=log))


class Searcher:
    """Runs the trials of a study. folder: of the search; each trial has a run folder below it. What is known of the
    trials lies in `search.json`, renewed with every change; the study is told of it again by a later call."""

    def __init__(self, study: Study, search: Search, *, folder: Path, metric: str, workers: Processes) -> None:
        self.study, self.search = study, search
        self.folder, self.metric = folder, metric
        self.workers = workers
        self.records: list[Record] = []
        self.running: dict[Path, tuple[Record, Trial]] = {}
        self.hopeless: set[Path] = set()
        self.failures = 0  # in a row
        self.stopped: str | None = None  # a trial that somebody else stopped

    def run(self, num_trials: int, earlier: Sequence[Record]) -> None:
        """Until there are so many trials, failed ones included. Raises UserError, nothing left running, after failures
        in a row, at a first trial that fails, and when a trial was stopped from outside."""
        waiting = self._replay(earlier)
        try:
            while True:
                while len(self.running) < self.workers.slots and self.stopped is None:
                    if not waiting and len(self.records) >= num_trials:
                        break
                    self._start(*(waiting.pop(0) if waiting else self._new()))
                if not self.running:
                    break
                time.sleep(POLL_SECONDS)
                for folder in self.running:
                    self._report(folder)
                while (ended := self.workers.ended()) is not None:
                    self._finish(*ended)
        finally:
            self.workers.stop()
        if self.stopped is not None:
            raise UserError(self.stopped)

    def _replay(self, earlier: Sequence[Record]) -> list[tuple[Record, Trial]]:
        """Tell the study of earlier trials; those that had not ended, to go on under their numbers."""
        waiting = []
        for record in earlier:
            self.study.enqueue_trial(record.params)
            trial = self.study.ask()
            self._words(trial)
            for step, value in record.values.items():
                trial.report(value, step)
            self.records.append(record)
            if record.state == RUNNING:
                waiting.append((record, trial))
            else:
                self._tell(trial, record)
        return waiting

    def _new(self) -> tuple[Record, Trial]:
        trial = self.study.ask()
        self._words(trial)
        self.records.append(Record(number=len(self.records), params=dict(trial.params)))
        return self.records[-1], trial

    def _words(self, trial: Trial) -> list[str]:
        return [f"{parameter.key}={suggest(trial, parameter)}" for parameter in self.search.parameters]

    def _start(self, record: Record, trial: Trial) -> None:
        folder, chosen = self.folder / f"trial-{record.number:03d}", self._words(trial)
        own = [f"name={self.folder.name}/{folder.name}", f"output_dir={quoted(str(folder))}", "ckpt_path=auto"]
        self.running[folder] = record, trial
        self.save()
        print(f"trial {record.number}: {' '.join(chosen)}", flush=True)
        self.workers.start(folder, [sys.executable, str(ROOT / "train.py"), *self.search.fixed, *chosen, *own])

    def _report(self, folder: Path) -> None:
        """Tell the study of new validations, and ask a run to stop that it holds for hopeless."""
        record, trial = self.running[folder]
        found: tuple[list[int], list[float]] = ([], [])
        with contextlib.suppress(UserError):  # a file that is being written is read again at the next turn
            found = read_metrics(folder).get(self.metric, found)
        new = {step: value for step, value in zip(*found, strict=True) if step > record.last_step}
        for step, value in new.items():
            trial.report(value, step)
            record.values[step] = value
        if new:
            self.save()
        if new and folder not in self.hopeless and trial.should_prune():
            self.hopeless.add(folder)
            self.workers.ask_to_stop(folder)

    def _finish(self, folder: Path, status: int, log: str) -> None:
        record, trial = self.running.pop(folder)
        if status == 0:
            record.value = float(read_results(RunFolder(folder).results)["metrics"][self.metric])
            record.state, said = FINISHED, f"{self.metric} {record.value:.6g}"
            if not math.isfinite(record.value):
                record.state, record.value = FAILED, None
        elif folder in self.hopeless:
            record.state, said = STOPPED_EARLY, f"stopped early, at step {record.last_step}"
        elif status == PREEMPTED:
            self.stopped = f"trial {record.number} was stopped from outside; call again to go on"
            return
        else:
            record.state, said = FAILED, f"failed, status {status}: {log}"
        self._tell(trial, record)
        self.save()
        print(f"trial {record.number}: {said}", flush=True)
        self.failures = self.failures + 1 if record.state == FAILED else 0
        none_ended_well = all(item.state in (FAILED, RUNNING) for item in self.records)
        if self.failures >= FAILURES_IN_A_ROW or (self.failures and none_ended_well):
            raise UserError(f"trial {record.number} {said}\nthe search ends here; failed trials are not tried again")

    def _tell(self, trial: Trial, record: Record) -> None:
        from optuna.trial import TrialState

        if record.state == FINISHED:
            self.study.tell(trial, record.value)
        else:
            self.study.tell(trial, state=TrialState.PRUNED if record.state == STOPPED_EARLY else TrialState.FAIL)

    def save(self) -> None:
        write_records(self.folder, self.search, self.metric, self.records)


def run_search(folder: Path, overrides: Sequence[str], settings: StudySettings) -> None:
    """Run or continue the search of `folder`, each trial a run below it, and print the best.

    overrides: as for train.py; the searched ones as Hydra's sweeps.
    Raises UserError for a search that cannot be, one that another process works at, and as `Searcher.run`.
    """
    from sm_diffusion.config.search_space import parse_search

    refuse_own_keys(overrides)
    search = parse_search(overrides)
    if not search.parameters:
        raise UserError("nothing to search: give at least one key=choice(...), key=range(...) or key=interval(...)")
    trainer = check(search)["trainer"]
    every, steps = trainer["val_every_steps"], trainer["max_steps"]
    if settings.pruner != "none" and not 0 < every < steps:
        raise UserError(
            f"trainer.val_every_steps={every}: no validation before the last of {steps} steps by which to stop a "
            f"trial; set trainer.val_every_steps={max(1, steps // 5)}, or give --pruner none"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / ".lock", timeout=0))
        except Timeout:
            raise UserError(f"{folder}: another smd search is at work there; wait for its end") from None
        earlier = read_records(folder, search, settings.metric)
        lengths = {"min_steps": every or steps, "max_steps": steps}
        study = make_study(folder.name, settings, earlier=len(earlier), **lengths)
        stack.enter_context(sigterm_as_exit())
        workers = Processes(settings.jobs, threads=max(1, (os.cpu_count() or 1) // settings.jobs))
        searcher = Searcher(study, search, folder=folder, metric=settings.metric, workers=workers)
        searcher.run(settings.trials, earlier)
    print(f"\n{summary(searcher.records, settings.metric)}\n{folder / RECORDS}")
    if best := [record for record in ranked(searcher.records, settings.metric)[:1] if record.state == FINISHED]:
        chosen = [f"{key}={value}" for key, value in best[0].params.items()]
        print("the best again:  python train.py " + shlex.join([*search.fixed, *chosen, "name=NAME"]))
