"""How train.py and eval.py start: compose, then run; a user's mistake ends with one line and status 2."""

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
from sm_diffusion.config.errors import one_line
from sm_diffusion.config.store import register
from sm_diffusion.interrupts import INTERRUPTED, Interrupted, say_interrupted
from sm_diffusion.paths import CONF
from sm_diffusion.types import UserError

ONE_RUN = "SM_DIFFUSION_ONE_RUN"  # in hydra.job.env_set: not one of many jobs
TYPED = "SM_DIFFUSION_TYPED"  # the words of the command line, for the jobs of a launcher, which have another one


def launch(config_name: str, run: Callable[[Any], object]) -> None:
    """Entry point of train.py and eval.py: compose, then run; a user's mistake ends with one line and status 2."""
    register()
    os.environ[TYPED] = json.dumps(sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach the handler below instead of Hydra's multi-line report

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def task(cfg: DictConfig) -> object:
        try:
            return run(_per_job(typed(config_name, cfg)))
        except UserError as error:
            _fail(str(error))  # SystemExit passes through Hydra, which would print a line of its own for an error

    try:
        task()
    except Interrupted:
        say_interrupted()
        raise
    except KeyboardInterrupt:  # before the program listened, or where a library restored Python's own handler
        say_interrupted()
        raise SystemExit(INTERRUPTED) from None
    except (HydraException, OmegaConfBaseException) as error:
        _fail(one_line(error))


def _per_job(config: Any) -> Any:
    """In a sweep every job gets a folder of its own below the run's: <output_dir>/<number>-<swept keys>. What `smd run`
    has a launcher run is one run, which keeps its folder."""
    hydra_config = HydraConfig.get()
    if hydra_config.mode == RunMode.MULTIRUN and ONE_RUN not in hydra_config.job.env_set:
        # What was typed as it stands is the same for all jobs.
        typed = {argument.lower() for argument in json.loads(os.environ.get(TYPED, "[]"))}
        swept = [override for override in hydra_config.overrides.task if override.lower() not in typed]
        label = re.sub(r"[^A-Za-z0-9_.=,-]+", "_", ",".join(swept))[:120]
        config.output_dir = str(Path(config.output_dir) / f"{hydra_config.job.num:03d}-{label}")
    return config


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
