"""What ships with the checkout: groups of conf/ with their options, experiments, and whether each can be composed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

import yaml

from sm_diffusion import registry
from sm_diffusion.paths import ROOT
from sm_diffusion.reproduction.experiment import list_experiments, load_experiment
from sm_diffusion.types import UserError

PROGRAMS = ("train", "eval")
CHECKED_GROUPS = ("model", "variant", "data", "strategy")
EVALUATION_GROUPS = ("evaluator", "sampler", "hydra")  # not groups of conf/train.yaml
# What an option leaves for the user to say, filled so that the rest of it can be checked.
STAND_INS = {
    "data=text_files": ("data.paths=[README.md]",),
    "data=chat_files": ("data.paths=[chat.jsonl]",),
    "data=dream_chat_files": ("data.paths=[chat.jsonl]",),
    "logger=wandb": ("logger.wandb=offline",),
    **{f"peft={name}": ("model=qwen2_tiny",) for name in ("lora_r16", "dora_r16", "qlora_r16")},
}


# ------------------------------------------------------------------------------------------------------------- list


def group_options(conf: Path) -> dict[str, list[Path]]:
    """Group name -> its option files, by name."""
    groups = {path.name: sorted(path.glob("*.yaml")) for path in sorted(conf.iterdir()) if path.is_dir()}
    return {name: files for name, files in groups.items() if files and name != "hydra"}


def comment_of(path: Path) -> str:
    """The first comment of a YAML file, its description; empty without one."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @package"):
            return line.lstrip("# ").rstrip()
        if line and not line.startswith("#"):
            break
    return ""


def defaults_of(conf: Path) -> dict[str, str]:
    """Group -> the option that train.yaml (then eval.yaml) chooses."""
    chosen: dict[str, str] = {}
    for program in reversed(PROGRAMS):
        path = conf / f"{program}.yaml"
        described = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for entry in described.get("defaults", []):
            if isinstance(entry, dict):
                chosen |= {str(key).split()[-1]: str(value) for key, value in entry.items() if value is not None}
    return chosen


def component_lines(group: registry.Group) -> Iterator[tuple[str, str]]:
    """(name, first sentence of its docstring) of the components that can be chosen without a preset."""
    for component in registry.components(group.name):
        if group.option and any(item.default is registry.MISSING for item in dataclasses.fields(component.thing)):
            continue
        doc = component.thing.__doc__ or ""
        own = "" if doc.startswith(f"{component.thing.__name__}(") else doc  # what dataclasses write by themselves
        text = " ".join(own.split("\n\n")[0].split())
        yield component.name, text if component.provider == "sm_diffusion" else f"{text} [{component.provider}]"


def groups_text(root: Path) -> str:
    """Every group with its options, the default marked, each with the first comment of its file."""
    defaults = defaults_of(root / "conf")
    lines = ["Choose with GROUP=OPTION; * is the default."]
    files = group_options(root / "conf")
    for group in registry.groups():
        described = {path.stem: comment_of(path) for path in files.pop(group.name, [])}
        described |= {name: text for name, text in component_lines(group) if name not in described}
        if not described:
            continue
        lines += ["", f"{group.name:<20} {group.says}" if group.option else f"{group.name:<20} {group.says} (a value)"]
        for name, text in described.items():
            mark = "*" if defaults.get(group.name) == name else " "
            lines.append(f"  {mark} {name:<18} {text}".rstrip())
    for name, paths in files.items():
        lines += ["", name, *(f"    {path.stem:<18} {comment_of(path)}".rstrip() for path in paths)]
    for name in list_experiments(root / "experiments"):
        experiment = load_experiment(name, root / "experiments")
        lines += ["", f"experiments={name}/...   {experiment.title}"]
        for row in experiment.rows:
            lines.append(f"    {row:<18} {comment_of(experiment.folder / f'{row}.yaml')}".rstrip())
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------ check


def shipped(root: Path) -> Iterator[list[str]]:
    """Overrides of everything that ships: model x data, variant x strategy, every other option, every row."""
    groups = group_options(root / "conf")
    for pair in (("model", "data"), ("variant", "strategy")):
        axes = [[f"{group}={path.stem}" for path in groups[group]] for group in pair if groups.get(group)]
        for options in itertools.product(*axes) if axes else ():
            yield list(options)
    for group, files in groups.items():
        if group not in (*CHECKED_GROUPS, *EVALUATION_GROUPS):
            yield from ([f"{group}={path.stem}"] for path in files)
    for name in list_experiments(root / "experiments"):
        rows = load_experiment(name, root / "experiments")
        yield from ([f"experiments={name}/{row}"] for row in rows.rows if row not in rows.eval_rows)


def shipped_evaluations(root: Path) -> Iterator[list[str]]:
    """Overrides of eval.py for every evaluation row."""
    for name in list_experiments(root / "experiments"):
        experiment = load_experiment(name, root / "experiments")
        for row in experiment.eval_rows:
            yield [f"experiments={name}/{row}", *consent_to_run_code(experiment.folder / f"{row}.yaml")]


def consent_to_run_code(row: Path) -> list[str]:
    """What a row of a code benchmark needs from its user, for checks that run nothing."""
    from sm_diffusion.config.compose import compose_config

    evaluator = compose_config("eval", [f"experiments={row.parent.name}/{row.stem}"]).evaluator
    return ["evaluator.allow_code_execution=true"] if "allow_code_execution" in vars(evaluator) else []


def check_all() -> int:
    """Compose and validate all that ships, a printed line for each; status 1 when any is refused."""
    from sm_diffusion.app.compose import composed  # Hydra and torch, which a list needs not

    failures = total = 0
    programs = [("train", overrides) for overrides in shipped(ROOT)]
    programs += [("eval", overrides) for overrides in shipped_evaluations(ROOT)]
    for program, overrides in programs:
        total += 1
        stand_ins = [value for option in overrides for value in STAND_INS.get(option, ())]
        try:
            composed(program, [*overrides, *stand_ins], checkpoint_exists=False)
        except UserError as error:
            failures += 1
            print(f"FAILED  {' '.join(overrides)}: {error}")
        else:
            print(f"ok      {' '.join(overrides)}")
    print(f"{total - failures} of {total} configurations are valid")
    return 1 if failures else 0
