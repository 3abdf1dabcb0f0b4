"""Hydra launchers: those of conf/hydra/launcher, and those of installed plugins."""

from __future__ import annotations

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

from sm_diffusion.paths import LAUNCHERS
from sm_diffusion.types import UserError


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
