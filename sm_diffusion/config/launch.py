"""How train.py and eval.py start: compose, then run; a user's mistake ends with one line and status 2.

A sweep (-m) is checked as a whole before its first job; a job that fails does not keep the others from running, and
the end says which failed. `ckpt_path=RUN_FOLDER` takes that run's own configuration, with what was typed on top.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from sm_diffusion.config.compose import typed
from sm_diffusion.config.continued import continued, run_to_continue
from sm_diffusion.config.errors import one_line
from sm_diffusion.config.store import register
from sm_diffusion.config.sweep import check_sweep, is_plain_sweep
from sm_diffusion.interrupts import INTERRUPTED, Interrupted, say_interrupted
from sm_diffusion.paths import CONF
from sm_diffusion.types import UserError

ONE_RUN = "SM_DIFFUSION_ONE_RUN"  # in hydra.job.env_set: not one of many jobs
TYPED = "SM_DIFFUSION_TYPED"  # the words of the command line, for the jobs of a launcher, which have another one


def launch(config_name: str, run: Callable[[Any], object], check: Callable[[Any], object] | None = None) -> None:
    """Entry point of train.py and eval.py: compose, then run; a user's mistake ends with one line and status 2.

    Args:
        config_name: train or eval.
        run: what the program does with its configuration.
        check: raises UserError for a configuration that `run` would refuse, without doing anything.
    """
    register()
    words = sys.argv[1:]
    os.environ[TYPED] = json.dumps(words)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach the handler below instead of Hydra's multi-line report
    failures: list[str] = []

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def task(cfg: DictConfig) -> object:
        try:
            return run(_per_job(typed(config_name, cfg)))
        except UserError as error:
            if not _goes_on():
                _fail(str(error))  # SystemExit passes through Hydra, which would print a line of its own for an error
            _failed(failures, str(error))
        except Exception as error:
            if not _goes_on():
                raise
            _failed(failures, f"{type(error).__name__}: {error}")
        return None

    try:
        if config_name == "train" and (folder := run_to_continue(words)) is not None:
            run(continued(folder, words))
        else:
            if is_plain_sweep(words):
                check_sweep(config_name, words, check)
            task()
    except Interrupted:
        say_interrupted()
        raise
    except KeyboardInterrupt:  # before the program listened, or where a library restored Python's own handler
        say_interrupted()
        raise SystemExit(INTERRUPTED) from None
    except UserError as error:
        _fail(str(error))
    except (HydraException, OmegaConfBaseException) as error:
        _fail(one_line(error))
    if failures:
        _fail(f"{len(failures)} of the sweep's jobs failed, the others are done:\n" + "\n".join(failures))


def job_folder(base: str, number: int, swept: list[str]) -> str:
    """<base>/<number>-<key>_<value>-...: no character that Hydra's grammar or a shell reads otherwise."""
    label = "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", word).strip("_") for word in swept)[:120]
    return str(Path(base) / (f"{number:03d}-{label}" if label else f"{number:03d}"))


def _per_job(config: Any) -> Any:
    """In a sweep every job gets a folder of its own below the run's (`job_folder`). What `smd run` has a launcher run
    is one run, which keeps its folder."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN and ONE_RUN not in hydra_config.job.env_set:
        swept = _swept(hydra_config)
        # Sweeps of earlier versions are continued where they are.
        earlier = re.sub(r"[^A-Za-z0-9_.=,-]+", "_", ",".join(swept))[:120]
        folder = Path(config.output_dir) / f"{hydra_config.job.num:03d}-{earlier}"
        config.output_dir = (
            str(folder) if folder.is_dir() else job_folder(config.output_dir, hydra_config.job.num, swept)
        )
    return config


def _swept(hydra_config: Any) -> list[str]:
    """Overrides of this job that differ between jobs: what was typed as it stands is the same for all."""
    typed = {argument.lower() for argument in json.loads(os.environ.get(TYPED, "[]"))}
    return [override for override in hydra_config.overrides.task if override.lower() not in typed]


def _goes_on() -> bool:
    """Whether the other jobs of a sweep run after a failure: where they run in this process, one after the other.
    A sweeper that chooses by results must see the failure itself."""
    hydra_config = HydraConfig.get()
    choices = hydra_config.runtime.choices
    in_turn = (choices.get("hydra/launcher"), choices.get("hydra/sweeper")) == ("basic", "basic")
    return hydra_config.mode == RunMode.MULTIRUN and in_turn and ONE_RUN not in hydra_config.job.env_set


def _failed(failures: list[str], message: str) -> None:
    job = HydraConfig.get()
    failures.append(f"  job {job.job.num} ({' '.join(_swept(job))}): {message.splitlines()[0]}")
    print(f"error: job {job.job.num}: {message}; the sweep goes on", file=sys.stderr, flush=True)


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
