"""What Hydra is told: the node of every component of the registry, and the folders it searches."""

from __future__ import annotations

import functools
from pathlib import Path

from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from sm_diffusion import registry
from sm_diffusion.config import nodes, root
from sm_diffusion.config.experiment_source import SCHEME, ExperimentsSource
from sm_diffusion.paths import CONF, EXPERIMENTS

ROOTS: dict[str, type] = {"train": root.TrainConfig, "eval": root.EvalConfig, "sample": root.SampleConfig}
BASE = "schema_"  # prefix of the nodes that YAML files extend


class ExperimentSearchPath(SearchPathPlugin):
    """Makes `experiments/` a config group from any working directory, and finds the YAML of plug-ins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="sm_diffusion", path=f"{SCHEME}://{EXPERIMENTS}")
        for folder in registry.config_folders():
            search_path.append(provider="plug-in", path=folder)


def evaluated(checkpoint: str) -> str:
    """The folder of its evaluations below runs/eval: runs/a/b/checkpoints/last.ckpt -> a/b, best-3.ckpt of it
    -> a/b/best-3, a run folder runs/a -> a, x/MDLM.ckpt -> MDLM, owner/name@commit -> owner-name."""
    path = Path(checkpoint.partition("@")[0])
    run = path.parents[1] if path.parent.name == "checkpoints" else path
    parts = [part for part in run.parts if part not in ("/", "..", ".")]
    if "runs" in parts:
        parts = parts[len(parts) - parts[::-1].index("runs") :]
    elif not path.exists() and "@" in checkpoint:
        parts = ["-".join(parts)]
    else:
        parts = parts[-1:]
    if run != path and path.stem != "last":
        parts.append(path.stem)
    elif run == path and path.suffix in (".ckpt", ".safetensors", ".pt", ".bin"):
        parts[-1:] = [path.stem]
    return "/".join(parts) or "model"


@functools.cache
def register() -> None:
    """Register a node for every component and root; a second call does nothing.

    A component is `schema_<name>`, which YAML extends, and `<name>` itself where no YAML file has that name.
    """
    OmegaConf.register_new_resolver("evaluated", evaluated, replace=True)
    store = ConfigStore.instance()
    for name, settings in ROOTS.items():
        store.store(name=f"{name}_schema", node=nodes.node_of(settings))
    for node, component in nodes.option_nodes().items():
        store.store(group=component.group, name=f"{BASE}{component.name}", node=node)
        if not (Path(CONF) / component.group / f"{component.name}.yaml").exists():
            store.store(group=component.group, name=component.name, node=node)
    SourcesRegistry.instance().register(ExperimentsSource)
    Plugins.instance().register(ExperimentSearchPath)
