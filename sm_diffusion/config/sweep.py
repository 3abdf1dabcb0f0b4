"""A sweep on the command line (-m), checked as a whole: no hour is spent before the job with the mistake is reached.

Its jobs run where a launcher of Hydra puts them: those of conf/hydra/launcher, and those of installed plugins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from hydra import initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException

from sm_diffusion.config.compose import compose_config
from sm_diffusion.config.errors import one_line
from sm_diffusion.paths import CONF, LAUNCHERS
from sm_diffusion.types import UserError

SHOWN = 8  # problems that are listed


def is_plain_sweep(words: Sequence[str]) -> bool:
    """Whether the command line asks Hydra's own sweeper for jobs; other sweepers choose theirs as they go."""
    with contextlib.suppress(SystemExit):  # Hydra says itself what is wrong with its options
        arguments, rest = get_args_parser().parse_known_args(list(words))
        asked_otherwise = arguments.cfg or arguments.info or arguments.hydra_help or arguments.help
        own = not any(word.lstrip("+").startswith(("hydra/sweeper=", "hydra.sweeper.")) for word in arguments.overrides)
        return bool(arguments.multirun) and own and not asked_otherwise and not rest
    return False


def jobs_of(words: Sequence[str]) -> list[list[str]]:
    """The overrides of every job. UserError for a command line that Hydra cannot read or that asks for no job."""
    overrides = get_args_parser().parse_known_args(list(words))[0].overrides
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()  # for glob(...)
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides=overrides)
            jobs = [list(job) for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None) for job in batch]
    except HydraException as error:
        raise UserError(one_line(error)) from None
    if not jobs:
        swept = " ".join(str(override.input_line) for override in parsed if override.is_sweep_override())
        raise UserError(
            f"{swept}: matches nothing, so the sweep has no job; glob looks into one folder of options only: name "
            "them, separated by commas (smd config --groups lists them)"
        )
    return jobs


def check_sweep(config_name: str, words: Sequence[str], check: Callable[[Any], object] | None) -> None:
    """Compose and check every job of a sweep. UserError lists the jobs that are refused; then none has run."""
    jobs = jobs_of(words)
    refused = []
    for number, overrides in enumerate(jobs):
        try:
            config = compose_config(config_name, overrides)
            if check is not None:
                check(config)
        except UserError as error:
            refused.append(f"  job {number} ({' '.join(overrides)}): {error}")
    if refused:
        more = [f"  ... and {len(refused) - SHOWN} more"] if len(refused) > SHOWN else []
        raise UserError(
            f"{len(refused)} of the sweep's {len(jobs)} jobs would be refused, so none is started:\n"
            + "\n".join([*refused[:SHOWN], *more])
        )


def check_launcher(name: str) -> None:
    """UserError unless Hydra has a launcher of that name: of conf/hydra/launcher, or of an installed plugin."""
    own = sorted(path.stem for path in LAUNCHERS.glob("*.yaml") if not path.stem.endswith("_eval"))
    if name in own and name != "slurm":
        return
    Plugins.instance()  # registers what is installed
    found = sorted(file.removesuffix(".yaml") for file in ConfigStore.instance().list("hydra/launcher"))
    if name not in (*own, *found):
        raise UserError(
            f"--launcher {name}: no such launcher; choose from {', '.join(sorted({*own, *found}))}; others need a "
            "plugin: pip install 'sm-diffusion[sweeps]'"
        )
    if name == "slurm" and "submitit_slurm" not in found:
        raise UserError("--launcher slurm: needs a plugin: pip install 'sm-diffusion[sweeps]'")
