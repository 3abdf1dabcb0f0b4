"""Hydra: registers the schemas, composes typed configurations, starts programs. Users see one line, not a traceback."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sm_diffusion.config import schema, schema_sampler, schema_scores
from sm_diffusion.paths import CONF, ROOT
from sm_diffusion.types import UserError

# Lines of Hydra's and OmegaConf's reports that tell a user nothing.
_NOISE = ("object_type=", "reference_type=", "See https://", "To append to your config", "schema_", "You may also")

ONE_RUN = "SM_DIFFUSION_ONE_RUN"  # in hydra.job.env_set: not one of many jobs
TYPED = "SM_DIFFUSION_TYPED"  # the words of the command line, for the jobs of a launcher, which have another one



class ExperimentSearchPath(SearchPathPlugin):
    """Makes `experiments/` a config group from any working directory."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append(provider="sm_diffusion", path=f"file://{ROOT}")


@functools.cache
def register() -> None:
    """Register the dataclasses that YAML files extend, and the experiment folder; a second call does nothing."""
    store = ConfigStore.instance()
    nodes: list[tuple[str | None, str, Any]] = [
        (None, "train_schema", schema.TrainConfig),
        (None, "eval_schema", schema.EvalConfig),
        ("model", "schema_dit", schema.DiTConfig),
        ("model", "schema_hf", schema.HFConfig),
        ("variant", "schema_mdlm", schema.MDLMVariantConfig),
        ("variant", "schema_soft_masked", schema.SoftMaskedVariantConfig),
        ("soft_mask", "schema_soft_mask", schema.SoftMaskConfig),
        ("data", "schema_python_corpus", schema.PythonCorpusConfig),
        ("data", "schema_text_files", schema.TextFilesConfig),
        ("data", "schema_chat_files", schema.ChatFilesConfig),
        ("data", "schema_python_chat", schema.PythonChatConfig),
        ("data", "schema_file_corpus", schema.FileCorpusConfig),
        ("data", "schema_mixture", schema.MixtureConfig),
        ("data", "schema_chat_mix", schema.ChatMixConfig),
        ("objective", "schema_mdlm", schema.ObjectiveConfig),
        ("schedule", "schema_schedule", schema.ScheduleConfig),
        ("optim", "schema_adamw", schema.OptimConfig),
        ("strategy", "schema_strategy", schema.StrategyConfig),
        ("trainer", "schema_trainer", schema.TrainerConfig),
        ("logger", "schema_logger", schema.LoggerConfig),
        ("callbacks", "schema_callbacks", schema.CallbacksConfig),
        ("peft", "schema_peft", schema.PeftConfig),
        ("evaluator", "schema_perplexity", schema.PerplexityConfig),
        ("evaluator", "schema_generative", schema.GenerativeConfig),
        ("evaluator", "schema_zero_shot", schema.ZeroShotConfig),
        ("evaluator", "schema_scores", schema_scores.ScoresConfig),
        (None, "sample_schema", schema_sampler.SampleConfig),
        *(("sampler", f"schema_{kind().name}", kind) for kind in schema_sampler.SAMPLERS),
    ]
    for group, name, node in nodes:
        store.store(group=group, name=name, node=node)
    Plugins.instance().register(ExperimentSearchPath)


def compose_config(config_name: str, overrides: Sequence[str] = ()) -> Any:
    """The typed configuration (schema.TrainConfig or EvalConfig) of `conf/<config_name>.yaml` with overrides.

    Raises UserError with one line for an unknown key, a wrong type, an unknown option or a missing value.
    """
    register()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return typed(compose(config_name, overrides=list(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(one_line(error)) from None


def restore_train_config(provenance: dict[str, Any]) -> schema.TrainConfig:
    """The configuration a checkpoint carries. UserError when it was written by an incompatible version."""
    try:
        base = OmegaConf.structured(schema.TrainConfig)
        for name, kind in provenance["types"].items():
            base[name] = OmegaConf.structured(vars(schema)[kind])
        return typed(OmegaConf.merge(base, provenance["config"]))  # type: ignore[no-any-return, arg-type]
    except (KeyError, OmegaConfBaseException) as error:
        raise UserError(f"the checkpoint's configuration is of another version: {one_line(error)}") from None


def typed(cfg: DictConfig) -> Any:
    """Dataclass objects instead of OmegaConf nodes; UserError lists every value that was not given."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError(f"{', '.join(missing)}: not set; give a value, for example {missing[0]}=...")
    unknown = list(_unknown_keys(cfg, ""))
    if unknown:
        raise UserError(f"{', '.join(unknown)}: unknown key; list the known keys with: smd config")
    try:
        return OmegaConf.to_object(cfg)
    except OmegaConfBaseException as error:
        raise UserError(one_line(error)) from None


def _unknown_keys(cfg: DictConfig, prefix: str) -> Iterator[str]:
    """Keys that `+key=value` added to a typed node: Hydra lets them in, nothing would ever read them."""
    declared = OmegaConf.get_type(cfg)
    known = {item.name for item in fields(declared)} if declared is not None and is_dataclass(declared) else None
    for key in cfg:
        name = f"{prefix}{key!s}"
        if known is not None and key not in known:
            yield name
        elif not OmegaConf.is_missing(cfg, key) and isinstance(cfg[key], DictConfig):
            yield from _unknown_keys(cfg[key], f"{name}.")


def one_line(error: BaseException) -> str:
    """What Hydra and OmegaConf say over several lines, as one: the cause, the full key, the value."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip().rstrip(".;") for line in [*str(error).splitlines(), *str(cause).splitlines()]]
    kept: list[str] = []
    for line in dict.fromkeys(lines):
        if line.startswith("Config search path"):
            break
        if line and not line.startswith(_NOISE):
            kept.append(line)
    text = "; ".join(kept).replace("':; ", "': ")
    if "Key '" in text:
        text += "; list the known keys with: smd config"
    if "missing EQUAL" in text:
        text += "; write key=value"
    return text


def launch(config_name: str, run: Callable[[Any], object]) -> None:
    """Entry point of train.py and eval.py: compose, then run; a user's mistake ends with one line and status 2."""
    register()
    os.environ[TYPED] = json.dumps(sys.argv[1:])
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors reach the handler below instead of Hydra's multi-line report

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)
    def task(cfg: DictConfig) -> object:
        try:
            return run(_per_job(typed(cfg)))
        except UserError as error:
            _fail(str(error))  # SystemExit passes through Hydra, which would print a line of its own for an error

    try:
        task()
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
