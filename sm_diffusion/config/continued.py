"""`train.py ckpt_path=RUN_FOLDER [key=value ...]`: that run's own configuration, with what was typed on top."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sm_diffusion.config import nodes
from sm_diffusion.config.compose import compose_config, stored_config, typed
from sm_diffusion.config.errors import one_line
from sm_diffusion.config.root import TrainConfig
from sm_diffusion.denoisers.checkpoints.weights import read_provenance
from sm_diffusion.files import read_text
from sm_diffusion.training.run_folder import RunFolder
from sm_diffusion.types import UserError

_KEY = "ckpt_path="


def run_to_continue(words: Sequence[str]) -> RunFolder | None:
    """The run folder that the last ckpt_path=... of a command line names; None: it names none, or a checkpoint."""
    given = [word.removeprefix(_KEY) for word in words if word.startswith(_KEY)]
    if not given or any(word in ("-m", "--multirun") for word in words):
        return None
    folder = RunFolder(given[-1].strip("'\""))
    return folder if folder.path.is_dir() and folder.is_run() else None


def continued(run: RunFolder, words: Sequence[str]) -> TrainConfig:
    """The configuration to go on with: `ckpt_path=last` in that folder.

    Args:
        run: the folder.
        words: of the command line: key=value changes one setting, group=option a whole group.

    Raises:
        UserError: no checkpoint is there, an override cannot be applied, or config.yaml is of another version.
    """
    if not run.last.exists():
        raise UserError(f"ckpt_path={run.path}: it holds no {run.last.relative_to(run.path)} to go on from")
    provenance = read_provenance(run.last / "tree.pt" if run.last.is_dir() else run.last) or {}
    overrides = [word for word in words if not word.startswith(_KEY)]
    try:
        stored = yaml.safe_load(read_text(run.config))  # as last started; the checkpoint knows the components
        cfg = stored_config({"config": stored, "types": provenance.get("types", {})})
        parsed = OverridesParser.create().parse_overrides(overrides=overrides)
        _choose_groups(cfg, parsed)
        for override in parsed:
            if override.key_or_group not in _groups():
                OmegaConf.update(cfg, override.key_or_group, override.value(), force_add=override.is_add())
        cfg.output_dir, cfg.ckpt_path, cfg.overwrite = str(run.path), "last", False
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise UserError(f"ckpt_path={run.path}: {one_line(error)}") from None
    return typed("train", cfg)  # type: ignore[no-any-return]


def _groups() -> set[str]:
    return {item.name for item in nodes.group_fields(TrainConfig)}


def _choose_groups(cfg: Any, overrides: Sequence[Any]) -> None:
    """Replace whole groups: `optim=small` with the `optim.key=value` beside it."""
    chosen = {override.key_or_group for override in overrides} & _groups()
    if not chosen:
        return
    lines = [override.input_line for override in overrides if override.key_or_group.split(".")[0] in chosen]
    composed = compose_config("train", lines)
    values = nodes.plain(composed)
    for item, value in nodes.group_values(composed):
        if item.name in chosen:
            node = nodes.node_of(nodes.component_type(item.metadata["group"], value))
            cfg[item.name] = OmegaConf.merge(OmegaConf.structured(node), values[item.name])
