"""Typed configurations: from the command line, and from what a checkpoint carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sm_diffusion import registry
from sm_diffusion.config import nodes, root
from sm_diffusion.config.errors import one_line
from sm_diffusion.config.store import ROOTS, register
from sm_diffusion.paths import CONF
from sm_diffusion.types import UserError

# Names that checkpoints of earlier versions give the classes of `provenance["types"]`.
ALIASES = {
    "DiTConfig": "dit",
    "HFConfig": "hf",
    "MDLMVariantConfig": "mdlm",
    "SoftMaskedVariantConfig": "soft_masked",
    "PythonCorpusConfig": "python_corpus",
    "TextFilesConfig": "text_files",
    "FileCorpusConfig": "file_corpus",
    "MixtureConfig": "mixture",
    "ChatFilesConfig": "chat_files",
    "PythonChatConfig": "python_chat",
    "ChatMixConfig": "chat_mix",
}


def compose_config(config_name: str, overrides: Sequence[str] = ()) -> Any:
    """The typed configuration (root.TrainConfig, EvalConfig or SampleConfig) of `conf/<config_name>.yaml`.

    Raises UserError with a line for each unknown key, wrong type, unknown option, missing value or refused setting.
    """
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return typed(config_name, compose(config_name, overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error)) from None


def typed(config_name: str, cfg: DictConfig) -> Any:
    """Settings instead of OmegaConf's nodes; UserError lists every value that was not given."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{', '.join(missing)}: not set; give a value, for example {missing[0]}=...")
    unknown = [_unknown_line(key, known) for key, known in nodes.unknown_keys(cfg)]
    if unknown:
        raise UserError("; ".join(unknown) + "; list the known keys with: smd config")
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from None
    try:
        return nodes.to_settings(ROOTS[config_name], cfg)
    except nodes.Refused as refused:
        raise listed(str(refused).splitlines()) from None


def listed(problems: Sequence[str]) -> UserError:
    """All problems in one error: a single one as it is, several below a count."""
    problems = list(dict.fromkeys(problems))
    if len(problems) == 1:
        return UserError(problems[0])
    return UserError(f"{len(problems)} problems in the configuration:\n" + "\n".join(f"  {p}" for p in problems))


def _unknown_line(key: str, known: tuple[str, ...]) -> str:
    return f"{key}: unknown key{registry.nearest(key, known)}"


def provenance(config: root.TrainConfig) -> dict[str, Any]:
    """The configuration as plain values, with the component of every group: what checkpoints carry."""
    types = {
        item.name: registry.name_of(item.metadata["group"], nodes.component_type(item.metadata["group"], value))
        for item, value in nodes.group_values(config)
    }
    return {"config": nodes.plain(config), "types": types}


def restore_train_config(provenance: Mapping[str, Any]) -> root.TrainConfig:
    """The configuration a checkpoint carries, of this version or an earlier one. UserError when it cannot be read."""
    return typed("train", stored_config(provenance))  # type: ignore[no-any-return]


def stored_config(provenance: Mapping[str, Any]) -> DictConfig:
    """As `restore_train_config`, still open to changes."""
    register()
    try:
        base = OmegaConf.structured(nodes.node_of(root.TrainConfig))
        config, types = dict(provenance["config"]), dict(provenance["types"])
        for item in nodes.group_fields(root.TrainConfig):
            kind, stored = types.get(item.name), config.get(item.name)
            node = nodes.stored_node(item.metadata["group"], ALIASES, kind, stored)
            base[item.name] = OmegaConf.structured(node)
        return OmegaConf.merge(base, config)  # type: ignore[return-value]
    except (KeyError, TypeError, AttributeError, OmegaConfBaseException) as error:
        raise UserError(f"the checkpoint's configuration is of another version: {one_line(error)}") from None
