"""What an experiment's runs are: where each lies, what it starts from, how it stands and what brings it to its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sm_diffusion.paths import LAUNCHERS, ROOT
from sm_diffusion.reproduction.experiment import RUNS, Experiment, load_experiment, run_folder
from sm_diffusion.reproduction.programs import Program, program_of, quoted
from sm_diffusion.reproduction.state import State
from sm_diffusion.types import UserError

Compose = Callable[[str, Sequence[str]], Mapping[str, Any]]  # (program, overrides) -> configuration


@dataclass(frozen=True)
class RowRun:
    """One run. overrides: what its program is given. needs: the run folder it starts from, or None.
    differences: `key: old -> new`, when the folder holds a run of another configuration."""

    experiment: str
    row: str
    seed: int
    folder: Path
    program: Program
    overrides: tuple[str, ...]
    needs: Path | None
    state: State
    differences: tuple[str, ...] = ()

    def command(self, launcher: str | None = None) -> list[str]:
        """The command line that brings it to its end from where it stands; launcher: of Hydra, None for this process's
        machine."""
        script, words = str(ROOT / f"{self.program.name}.py"), [*self.overrides, *self.program.going_on(self.state)]
        if launcher is None:
            return [sys.executable, script, *words]
        from sm_diffusion.config.launch import ONE_RUN

        own = f"{launcher}_{self.program.name}"  # settings of this program's own, where there are any
        name = own if (LAUNCHERS / f"{own}.yaml").is_file() else launcher
        jobs = self.folder.parent / ".jobs" / self.folder.name
        settings = [f"hydra/launcher={name}", f"hydra.sweep.dir={quoted(str(jobs))}", f"+hydra.job.env_set.{ONE_RUN}=1"]
        return [sys.executable, script, "--multirun", *settings, *words]


def compose_row(program: str, overrides: Sequence[str]) -> Mapping[str, Any]:
    """The resolved and validated configuration; the checkpoint a row starts from need not exist yet."""
    from sm_diffusion.app.compose import composed

    return composed(program, overrides, checkpoint_exists=False)


class Planner:
    """Collects runs and, before each, the run it starts from, of whatever experiment.

    extra: overrides for all rows whose program knows the key. runs: the folder of all runs.
    """

    def __init__(self, *, extra: Sequence[str], runs: Path, compose: Compose) -> None:
        self.extra = extra
        self.runs = runs
        self.compose = compose
        self.planned: dict[Path, RowRun] = {}
        self._open: list[Path] = []
        self._configs: dict[tuple[str, ...], Mapping[str, Any]] = {}

    def add(self, experiment: Experiment, row: str, seed: int | None) -> Path:
        """The run folder of a row. seed: None for the row's own."""
        program = program_of(experiment, row)
        base = [f"experiments={experiment.name}/{row}", *(word for word in self.extra if program.accepts(word))]
        own = self._composed(program.name, base)
        suffix = None if seed in (None, own["seed"]) else seed
        folder = run_folder(experiment.name, row, seed=suffix, runs=self.runs)
        if folder in self._open:
            names = ", ".join(path.name for path in self._open)
            raise UserError(f"{experiment.name}: rows start from one another in a circle: {names}")
        if folder not in self.planned:
            self._open.append(folder)
            self.planned[folder] = self._plan(experiment, row, program, base=base, own=own, seed=suffix)
            self._open.pop()
        return folder

    def _composed(self, program: str, overrides: Sequence[str]) -> Mapping[str, Any]:
        """Once for each command line: composing takes about half a second."""
        key = (program, *overrides)
        if key not in self._configs:
            self._configs[key] = self.compose(program, overrides)
        return self._configs[key]

    def _plan(
        self,
        experiment: Experiment,
        row: str,
        program: Program,
        *,
        base: list[str],
        own: Mapping[str, Any],
        seed: int | None,
    ) -> RowRun:
        folder = run_folder(experiment.name, row, seed=seed, runs=self.runs)
        overrides = [*base, *program.extra(own, experiment.name)]
        if seed is not None:
            overrides += program.own_seed(row, folder, seed)
        config = own if seed is None else self._composed(program.name, overrides)
        if Path(config["output_dir"]) != folder:
            overrides.append(f"output_dir={quoted(str(folder))}")
        start = self._start(experiment, own[program.start], program, seed=seed)
        if start is not None and str(start[1]) != own[program.start]:
            overrides.append(f"{program.start}={quoted(str(start[1]))}")
        if len(overrides) > len(base):
            config = self._composed(program.name, overrides)
        needs = start[0] if start else None
        state, differences = program.state(folder, config, needs)
        return RowRun(
            experiment=experiment.name,
            row=row,
            seed=int(config["seed"]),
            folder=folder,
            program=program,
            overrides=tuple(overrides),
            needs=needs,
            state=state,
            differences=tuple(differences),
        )

    def _start(
        self, experiment: Experiment, checkpoint: str | None, program: Program, *, seed: int | None
    ) -> tuple[Path, Path] | None:
        """(run folder, checkpoint) that a row starts from when that is a row of an experiment; the run is planned."""
        parts = Path(checkpoint).parts if checkpoint is not None else ()
        if len(parts) < len(RUNS.parts) + 2 or parts[: len(RUNS.parts)] != RUNS.parts:
            return None
        name, row, *rest = parts[len(RUNS.parts) :]
        try:
            other = experiment if name == experiment.name else load_experiment(name)
        except UserError:
            return None  # a folder of the user's own
        if row not in other.rows:
            return None
        if other.name != experiment.name and seed is not None:
            seed = program.starts_at(seed)
        folder = self.add(other, row, seed)
        return folder, folder.joinpath(*rest)


def plan_runs(
    experiment: Experiment,
    *,
    seeds: Sequence[int] = (),
    extra: Sequence[str] = (),
    runs: Path = RUNS,
    compose: Compose | None = None,
) -> list[RowRun]:
    """Every run of the experiment and of what it starts from, with its state, each after the one it starts from.

    seeds: empty for the experiment's, or else each row's own. extra: overrides for all rows whose program knows them.
    """
    programs = {program_of(experiment, row) for row in experiment.rows}
    for word in extra:
        if not any(program.accepts(word) for program in programs):
            raise UserError(f"{word}: no row of {experiment.name} takes it (its rows are evaluations)")
    planner = Planner(extra=extra, runs=runs, compose=compose or compose_row)
    for row in experiment.rows:
        for seed in dict.fromkeys(seeds or experiment.seeds) or [None]:
            planner.add(experiment, row, seed)
    return list(planner.planned.values())
