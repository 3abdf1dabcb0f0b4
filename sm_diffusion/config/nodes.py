"""Between the dataclasses of settings and Hydra's typed nodes.

A node is a dataclass that OmegaConf understands, made from a class of settings: the same fields, types and defaults.
Settings themselves may be frozen, hold tuples and `Literal` choices, and import no Hydra. `to_settings` goes the other
way and checks on the way what the types say.

Marks in a field's metadata:

    group(NAME):   the field holds a component, chosen by Hydra's group NAME
    choice(NAME):  a string that names a component of the group NAME
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import MISSING as NO_DEFAULT
from dataclasses import Field, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sm_diffusion import registry
from sm_diffusion.config.errors import one_line
from sm_diffusion.registry import MISSING, Component
from sm_diffusion.types import UserError

NAME = "name"  # the key that tells which component a node is, where the settings have no field of that name


class Refused(UserError):
    """Problems of settings, one a line, beside whatever could be built."""


# ------------------------------------------------------------------------------------------------- settings -> nodes


@functools.cache
def hints(settings: type) -> dict[str, Any]:
    """Types of a dataclass's fields."""
    return typing.get_type_hints(settings)


def settings_fields(settings: type) -> list[Field[Any]]:
    """The fields that are settings: those a constructor takes, but for what its builder gives it."""
    return [item for item in fields(settings) if item.init and "given" not in item.metadata]


@functools.cache
def _options() -> Mapping[type, Component]:
    """Every component that is an option of a Hydra group, by its class."""
    found: dict[type, Component] = {}
    for group in registry.groups():
        for component in registry.components(group.name) if group.option else ():
            thing: Any = component.thing
            if not is_dataclass(thing):
                raise ValueError(f"{component.group}/{component.name}: register a dataclass of settings")
            found[component.thing] = component
    return found


@functools.cache
def node_of(settings: type) -> type:
    """The node class of a class of settings.

    A component's node has a key `name` where its settings have no such field, and the settings its group shares.
    """
    made: list[tuple[str, Any, Any]] = []
    component = _options().get(settings)
    name = None if component is None else component.name
    shared = None if component is None else shared_of(component.group)
    own = [item.name for item in settings_fields(settings)]
    if name is not None and NAME not in own:
        made.append((NAME, str, dataclasses.field(default=name)))
    for owner in (shared, settings):
        if owner is None:
            continue
        for item in settings_fields(owner):
            if owner is shared and item.name in own:
                continue
            if "flatten" in item.metadata:
                continue
            made.append((item.name, *_node_field(owner, item)))
    return dataclasses.make_dataclass(settings.__name__, made)


def _node_field(owner: type, item: Field[Any]) -> tuple[Any, Any]:
    if "group" in item.metadata:
        if "of" in item.metadata:
            node = node_of(registry.find(item.metadata["group"], item.metadata["of"]))
            return Any, dataclasses.field(default_factory=node)
        return Any, dataclasses.field(default=None if item.default is None else MISSING)
    if "components" in item.metadata:
        return dict[str, Any], dataclasses.field(default_factory=dict)
    hint = hints(owner)[item.name]
    if is_dataclass(hint) and isinstance(hint, type):
        node = node_of(hint)
        if item.default is NO_DEFAULT and item.default_factory is NO_DEFAULT:
            return node, dataclasses.field(default_factory=node)
        default = item.default if item.default_factory is NO_DEFAULT else item.default_factory()
        values = {} if default is MISSING else _plain_values(default)
        return node, dataclasses.field(default_factory=functools.partial(node, **values))
    kind = _node_type(hint)
    if item.default_factory is not NO_DEFAULT:
        factory = item.default_factory
        return kind, dataclasses.field(default_factory=lambda: _listed(factory()))
    if item.default is NO_DEFAULT:
        return kind, dataclasses.field(default=MISSING)
    if isinstance(item.default, tuple):
        value = list(item.default)
        return kind, dataclasses.field(default_factory=lambda: list(value))
    return kind, dataclasses.field(default=item.default)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _plain_values(settings: Any) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for item in settings_fields(type(settings)):
        value: Any = vars(settings)[item.name]
        nested, kind = is_dataclass(value), type(value)
        made[item.name] = node_of(kind)(**_plain_values(value)) if nested else _listed(value)  # type: ignore[arg-type]
    return made


def _node_type(hint: Any) -> Any:
    """The nearest type that OmegaConf knows."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return type(arguments[0])
    if origin in (types.UnionType, typing.Union):
        inner = [_node_type(argument) for argument in arguments if argument is not type(None)]
        if len(inner) > 1:
            return Any
        return typing.Optional[inner[0]] if len(inner) < len(arguments) else inner[0]  # noqa: UP045
    if origin in (list, tuple):
        return list[_node_type(arguments[0])]  # type: ignore[misc]
    if origin is dict:
        return dict[str, _node_type(arguments[1])]  # type: ignore[misc]
    if is_dataclass(hint) and isinstance(hint, type):
        return node_of(hint)
    return hint


@functools.cache
def option_nodes() -> Mapping[type, Component]:
    """The node class of every component that is an option of a Hydra group."""
    return {node_of(settings): component for settings, component in _options().items()}


def shared_of(group: str) -> type | None:
    """The settings that every option of a group has."""
    path = next(item.shared for item in registry.groups() if item.name == group)
    if path is None:
        return None
    module, _, name = path.partition(":")
    return vars(__import__(module, fromlist=[name]))[name]  # type: ignore[no-any-return]


# ------------------------------------------------------------------------------------------------- nodes -> settings


def to_settings(settings: type, cfg: DictConfig) -> Any:
    """An object of `settings` from its node. Raises Refused with every problem that types and components name."""
    problems: list[str] = []
    made = _object(settings, cfg, "", problems)
    if problems:
        raise Refused("\n".join(problems))
    return made


def _object(settings: type, cfg: DictConfig, prefix: str, problems: list[str]) -> Any:
    values = {}
    for item in settings_fields(settings):
        if "flatten" not in item.metadata and item.name in cfg:
            values[item.name] = _value(settings, item, cfg[item.name], f"{prefix}{item.name}", problems)
    return _construct(settings, values, problems)


def _construct(settings: type, values: dict[str, Any], problems: list[str]) -> Any:
    try:
        return settings(**values)
    except UserError as error:
        problems.extend(str(error).splitlines())
        return None


def _value(owner: type, item: Field[Any], value: Any, key: str, problems: list[str]) -> Any:
    if "group" in item.metadata:
        return None if value is None else component_settings(item.metadata["group"], value, f"{key}.", problems)
    if "components" in item.metadata:
        return {name: _named(item.metadata["components"], name, given, key, problems) for name, given in value.items()}
    hint = hints(owner)[item.name]
    if "choices" in item.metadata and value is not None:
        choices = registry.names(item.metadata["choices"])
        if value not in choices:
            problems.append(registry.unknown(key, value, choices))
    return _converted(hint, value, key, problems)


def _named(group: str, name: str, given: Any, key: str, problems: list[str]) -> Any:
    """A component given as {name: {key: value}}."""
    if name not in registry.names(group):
        problems.append(registry.unknown(key, name, registry.names(group)))
        return None
    thing = registry.find(group, name)
    node = OmegaConf.structured(node_of(thing))
    own = [] if given is None else list(given)
    wrong = [item for item in own if item not in node]
    for item in wrong:
        problems.append(f"{key}.{name}.{item}: unknown key{registry.nearest(item, tuple(node))}")
    if wrong:
        return None
    try:
        merged = OmegaConf.merge(node, {} if given is None else given)
    except OmegaConfBaseException as error:
        problems.append(f"{key}.{name}: {one_line(error)}")
        return None
    assert isinstance(merged, DictConfig)
    made = _object(thing, merged, f"{key}.{name}.", problems)
    problems.extend(registry.problems_of(made) if made is not None else [])
    return made


def _converted(hint: Any, value: Any, key: str, problems: list[str]) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if value not in arguments:
            problems.append(registry.unknown(key, value, tuple(map(str, arguments))))
        return value
    if origin in (types.UnionType, typing.Union):
        inner = [argument for argument in arguments if argument is not type(None)]
        return None if value is None else _converted(inner[0], value, key, problems) if len(inner) == 1 else value
    if isinstance(value, ListConfig):
        items = [_converted(arguments[0] if arguments else Any, item, key, problems) for item in value]
        return tuple(items) if origin is tuple else items
    if isinstance(value, DictConfig):
        if is_dataclass(hint) and isinstance(hint, type):
            return _object(hint, value, f"{key}.", problems)
        inner_hint = arguments[1] if origin is dict else Any
        return {name: _converted(inner_hint, value[name], f"{key}.{name!s}", problems) for name in value}
    return value


def component_settings(group: str, cfg: DictConfig, prefix: str, problems: list[str]) -> Any:
    """The component that a node stands for. `name` decides: schedule.name=cosine is schedule=cosine."""
    kind: Any = OmegaConf.get_type(cfg)
    component = option_nodes().get(kind)
    if component is None:
        problems.append(f"{group}: not an option of this group; choose one of {', '.join(registry.names(group))}")
        return None
    shared = shared_of(group)
    thing = component.thing
    if all(item.name != NAME for item in settings_fields(thing)):
        name = cfg[NAME]
        if name not in registry.names(group):
            problems.append(registry.unknown(f"{group}.{NAME}", name, registry.names(group)))
            return None
        if name != component.name:
            thing = registry.find(group, name)
    if shared is None:
        return _object(thing, cfg, prefix, problems)
    inner = _object(thing, cfg, prefix, problems)
    values = {
        item.name: _value(shared, item, cfg[item.name], f"{prefix}{item.name}", problems)
        for item in settings_fields(shared)
        if "flatten" not in item.metadata and item.name in cfg
    }
    flattened = next(item.name for item in fields(shared) if "flatten" in item.metadata)
    return None if inner is None else _construct(shared, {**values, flattened: inner}, problems)


def group_fields(settings: type) -> list[Field[Any]]:
    """The fields that hold components."""
    return [item for item in settings_fields(settings) if "group" in item.metadata]


def group_values(settings: Any) -> list[tuple[Field[Any], Any]]:
    """The fields that hold components, with the components."""
    return [(item, vars(settings)[item.name]) for item in group_fields(type(settings))]


def component_type(group: str, settings: Any) -> type:
    """The registered class that settings of a group stand for."""
    return type(_inner(group, settings))


def _inner(group: str | None, settings: Any) -> Any:
    shared = shared_of(group) if group is not None else None
    if shared is None or not isinstance(settings, shared):
        return settings
    return vars(settings)[next(item.name for item in fields(shared) if "flatten" in item.metadata)]


def stored_node(group: str, aliases: Mapping[str, str], kind: str | None, stored: Any) -> type:
    """The node class of a component that a checkpoint carries.

    aliases: older names of kinds.  kind: its name there; None: older checkpoints name only some, so the stored `name`
    or the group's first component tells.  KeyError where it is not registered.
    """
    entries = {component.name: component for component in registry.components(group)}
    if kind is None:
        name = stored.get(NAME) if isinstance(stored, Mapping) else None
        kind = name if name in entries else next(iter(entries))
    return node_of(entries[aliases.get(kind, kind)].thing)


# ------------------------------------------------------------------------------------------------- settings -> plain


def plain(settings: Any, group: str | None = None) -> dict[str, Any]:
    """Settings as plain values, as config.yaml and checkpoints hold them; components say their name."""
    made: dict[str, Any] = {}
    inner = _inner(group, settings)
    names = [item.name for item in settings_fields(type(inner))]
    if group is not None and NAME not in names:
        made[NAME] = registry.name_of(group, type(inner))
    for owner in dict.fromkeys((settings, inner)) if inner is not settings else (settings,):
        for item in settings_fields(type(owner)):
            if "flatten" not in item.metadata:
                made[item.name] = _plain(vars(owner)[item.name], item.metadata.get("group"))
    return made


def _plain(value: Any, group: str | None) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return plain(value, group)
    if isinstance(value, Mapping):
        return {key: _plain(inner, None) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, None) for inner in value]
    return value


def defaults(settings: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(key, default) of every setting, nested ones by their full key, of each component that may stand there."""
    for item in fields(node_of(settings)):
        key = f"{prefix}{item.name}"
        if item.default is not NO_DEFAULT and item.default is not MISSING:
            yield key, item.default
        elif item.default_factory is not NO_DEFAULT:
            value = OmegaConf.to_container(OmegaConf.structured({"value": item.default_factory()}))["value"]  # type: ignore[index, call-overload]
            yield from _flat_defaults(value, key)
    for item in group_fields(settings):
        for component in registry.components(item.metadata["group"]):
            yield from defaults(component.thing, f"{prefix}{item.name}.")


def _flat_defaults(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat_defaults(inner, f"{key}.{name}")
    elif value is not MISSING:
        yield key, value


def from_plain(group: str, values: Mapping[str, Any]) -> Any:
    """The inverse of `plain` for a component; its `name` tells which. Raises UserError for what does not fit."""
    kind = values.get(NAME)
    if kind not in registry.names(group):
        raise UserError(registry.unknown(f"{group}.{NAME}", kind, registry.names(group)))
    node = OmegaConf.structured(node_of(registry.find(group, str(kind))))
    known = [item for item in values if item in node]
    problems: list[str] = []
    made = component_settings(group, OmegaConf.merge(node, {key: values[key] for key in known}), f"{group}.", problems)  # type: ignore[arg-type]
    if problems:
        raise Refused("\n".join(problems))
    return made


def unknown_keys(cfg: DictConfig, prefix: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """Keys that no settings declare, which Hydra lets in through `+key=value`: (full key, the known keys beside it)."""
    declared = OmegaConf.get_type(cfg)
    known = [item.name for item in fields(declared)] if declared is not None and is_dataclass(declared) else None
    for key in cfg:
        name = f"{prefix}{key!s}"
        if known is not None and key not in known:
            yield name, tuple(f"{prefix}{item}" for item in known)
        elif not OmegaConf.is_missing(cfg, key) and isinstance(cfg[key], DictConfig):
            yield from unknown_keys(cfg[key], f"{name}.")
