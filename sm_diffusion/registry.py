"""One table of components: what a user chooses by name. Standard library only.

A component is registered where it is written, by the call that a plug-in uses as well:

    @register("schedule", "log_linear")
    @dataclass(frozen=True)
    class LogLinear(NoiseSchedule):
        eps: float = 1e-3  # what stays clean at t = 1

The fields of the dataclass are its settings: their names, types and defaults stand nowhere else. Hydra's options, the
choices named in errors, `smd config --groups` and the classes that checkpoints name are all read from this table.

A component may say what is wrong with its settings:

    def problems(self) -> Iterator[str]: ...    # each "group.key=value: what is wrong; what to set instead"

A plug-in is any installed package with an entry point in the group `sm_diffusion.plugins`: loading it imports a module
that registers its components.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, runtime_checkable

from sm_diffusion.types import UserError

MISSING: Any = "???"  # how Hydra and OmegaConf write a value that must be given
ENTRY_POINTS = "sm_diffusion.plugins"


@dataclass(frozen=True)
class Group:
    """A kind of component.

    says:    what is chosen, in a line; shown by `smd config --groups`.
    modules: where the built-in components are registered; imported when the group is first asked for.
    option:  whether it is a group of Hydra (schedule=cosine), or named by a key (objective.times=uniform).
    shared:  "module:class" of a dataclass whose fields every option of the group has beside its own.
    """

    name: str
    says: str
    modules: tuple[str, ...]
    option: bool = True
    shared: str | None = None


@dataclass(frozen=True)
class Component:
    """One entry. thing: a dataclass of settings, or for a group without options any object. provider: who registered
    it: the top-level package of the module."""

    group: str
    name: str
    thing: Any
    provider: str


@dataclass
class _Table:
    groups: dict[str, Group] = field(default_factory=dict)
    components: dict[str, dict[str, Component]] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)


_S = "sm_diffusion."
GROUPS = (
    Group("model", "the network", (_S + "denoisers.dit.settings", _S + "denoisers.pretrained.settings")),
    Group(
        "variant",
        "what happens to the prediction of a position that stays masked",
        (_S + "training.variant_settings",),
    ),
    Group("soft_mask", "how much a prediction is trusted, and where the omegas start", (_S + "diffusion.soft_mask",)),
    Group("mixing", "how token embeddings are blended", (_S + "diffusion.mixing",), option=False),
    Group("schedule", "alpha(t), the share of clean tokens at time t", (_S + "diffusion.schedule",)),
    Group("times", "how diffusion times are sampled", (_S + "diffusion.schedule", _S + "diffusion.sft"), option=False),
    Group("objective", "the training loss", (_S + "diffusion.objective", _S + "diffusion.sft")),
    Group("peft", "adapters on a frozen network", (_S + "denoisers.adapters.settings",)),
    Group("data", "the corpus", (_S + "data.settings", _S + "data.chat.settings")),
    Group("optim", "the optimiser", (_S + "training.optim",)),
    Group("trainer", "how long and on what a run is carried out", (_S + "training.trainer_settings",)),
    Group("strategy", "how a step is spread over processes", (_S + "training.strategies.settings",)),
    Group("logger", "where numbers of a run go", (_S + "training.loggers",)),
    Group("callbacks", "what happens beside the steps of a run", (_S + "training.callbacks.settings",)),
    Group("callback", "one more callback: +callbacks.extra.NAME={...}", (), option=False),
    Group("log", "one more logger: +logger.extra.NAME={...}", (), option=False),
    Group(
        "sampler",
        "the order in which masks become tokens",
        tuple(_S + f"sampling.orders.{name}" for name in ("ancestral", "remdm", "confidence")),
        shared=_S + "sampling.settings:SamplerSettings",
    ),
    Group("measure", "how sure the network is of a token it drew", (_S + "sampling.categorical",), option=False),
    Group("strength", "decode-time factor on omega_s", (_S + "sampling.settings",), option=False),
    Group("cache", "keys and values kept between sampling steps", (_S + "sampling.settings",), option=False),
    Group(
        "evaluator",
        "what is measured of a checkpoint",
        tuple(
            _S + f"evaluation.{name}"
            for name in ("perplexity", "generation.settings", "zero_shot", "benchmarks.settings")
        ),
    ),
    Group("benchmark", "problems a model answers", (_S + "evaluation.benchmarks.task_data",), option=False),
    Group("protocol", "how a benchmark is asked and read", (_S + "evaluation.benchmarks.protocols",), option=False),
)
_TABLE = _Table({group.name: group for group in GROUPS}, {group.name: {} for group in GROUPS})
T = TypeVar("T")


@runtime_checkable
class Checked(Protocol):
    """Settings that say what is wrong with them."""

    def problems(self) -> Iterator[str]: ...


def register(group: str, name: str) -> Callable[[T], T]:
    """Enter a component under a name; returns it unchanged.

    Raises ValueError when the group is not known, or another object has the name: two plug-ins may not fight for it.
    """

    def enter(thing: T) -> T:
        if group not in _TABLE.groups:
            raise ValueError(f"register({group!r}, {name!r}): no such group; the groups are {', '.join(_TABLE.groups)}")
        entries = _TABLE.components[group]
        provider = _identity(thing)[0].split(".")[0]
        held = entries.get(name)
        if held is not None and _identity(held.thing) != _identity(thing):
            raise ValueError(f"register({group!r}, {name!r}): {held.provider} has a component of this name already")
        entries[name] = Component(group, name, thing, provider)
        return thing

    return enter


def _identity(thing: Any) -> tuple[str, str]:
    # A module that is imported a second time (tests, notebooks) registers the same class or function again.
    return thing.__module__, thing.__qualname__


def choice(group: str, default: Any = MISSING) -> Any:
    """A field that names a component of a group without options of its own, such as objective.times."""
    return field(default=default, metadata={"choices": group})


def option(group: str, default: Any = MISSING, *, of: str | None = None) -> Any:
    """A field that holds a component, chosen by Hydra's group.

    default: None where there may be none.
    of:      the group's only component, for groups whose options are all settings of one.
    """
    return field(default=default, metadata={"group": group} if of is None else {"group": group, "of": of})


def extras(group: str) -> Any:
    """A field of components of a group by name, each with its settings: {name: {key: value}}."""
    return field(default_factory=dict, metadata={"components": group})


def given(default: Any) -> Any:
    """A field that no user sets: what builds the object gives it."""
    return field(default=default, metadata={"given": True})


def own_part() -> Any:
    """The field of a group's shared settings that holds the component itself; its settings stand beside the shared."""
    return field(metadata={"flatten": True})


def add_config_folder(folder: str) -> None:
    """Have Hydra search another folder of YAML, as `file:///a/folder` or `pkg://package.folder`; plug-ins call it."""
    if folder not in _TABLE.folders:
        _TABLE.folders.append(folder)


def config_folders() -> tuple[str, ...]:
    """The folders that plug-ins added."""
    load_plugins()
    return tuple(_TABLE.folders)



@functools.cache
def load_plugins() -> tuple[str, ...]:
    """Load every plug-in once; their names. UserError names one that cannot be loaded."""
    loaded = []
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:
            raise UserError(
                f"plug-in {entry.name} ({entry.value}): cannot be loaded ({type(error).__name__}: "
                f"{' '.join(str(error).split())}); mend it, or uninstall it"
            ) from error
        loaded.append(entry.name)
    return tuple(loaded)


def _load(group: str) -> dict[str, Component]:
    for module in _TABLE.groups[group].modules:
        importlib.import_module(module)
    load_plugins()
    return _TABLE.components[group]


def groups() -> tuple[Group, ...]:
    """Every kind of component, in the order they were defined."""
    load_plugins()
    return tuple(_TABLE.groups.values())


def names(group: str) -> tuple[str, ...]:
    """Names of a group's components, the built-in ones first."""
    return tuple(_load(group))


def components(group: str) -> tuple[Component, ...]:
    """Entries of a group."""
    return tuple(_load(group).values())


def find(group: str, name: str, *, key: str | None = None) -> Any:
    """The thing registered under a name.

    key: what the user typed it as, for the error; None: the group.
    Raises UserError that lists the choices, the nearest first.
    """
    entries = _load(group)
    if name not in entries:
        raise UserError(unknown(key or group, name, tuple(entries)))
    return entries[name].thing


def unknown(key: str, value: object, choices: tuple[str, ...]) -> str:
    """One line: the choices, and the nearest of them where one is near."""
    return f"{key}={value}: unknown{nearest(str(value), choices)}; choose one of {', '.join(choices)}"


def nearest(word: str, choices: tuple[str, ...]) -> str:
    """" (did you mean ...?)", or nothing where no choice is near."""
    near = difflib.get_close_matches(word, choices, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def name_of(group: str, thing: type) -> str:
    """The name a class is registered under. KeyError where it is not."""
    for component in _load(group).values():
        if component.thing is thing:
            return component.name
    raise KeyError(f"{thing.__name__} is not registered in group {group}")


def problems_of(settings: Any) -> list[str]:
    """What a component says of its own settings; nothing where it says nothing."""
    return list(settings.problems()) if isinstance(settings, Checked) else []


def refuse(settings: Checked) -> None:
    """Raise UserError with every problem of the settings, a line each; for `__post_init__` of pure objects."""
    found = list(settings.problems())
    if found:
        raise UserError("\n".join(found))
