"""A W&B sweep file from a Hydra search space, checked against the configuration before it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from sm_diffusion.config.search_space import Search

METHODS = ("bayes", "random", "grid")
# What train.py logs; a sweep over another name would never see a value.
METRICS = (
    *(f"val/{name}" for name in ("nll", "ppl", "bits_per_token", "bits_per_byte")),
    "train/loss",
    "compute/tokens_per_second",
)
OWN_KEYS = ("name", "output_dir", "logger", "logger.wandb", "overwrite", "ckpt_path")
# Each run of an agent gets a name and so a folder of its own. The agent sets the variable; Hydra reads it.
RUN_NAME = "name={folder}/${{oc.env:WANDB_RUN_ID}}"


def sweep_config(
    search: Search, *, method: str, metric: str, goal: str, name: str, run_cap: int | None
) -> dict[str, Any]:
    """The content of the sweep file.

    Raises UserError for a search that W&B cannot carry out: nothing searched, an interval in a grid.
    """
    if not search.parameters:
        raise UserError("nothing to search: give at least one key=choice(...), key=range(...) or key=interval(...)")
    intervals = [item.key for item in search.parameters if item.is_interval]
    if method == "grid" and intervals:
        raise UserError(
            f"--method grid tries every value, and {intervals[0]} is an interval; list values, or take bayes"
        )
    content: dict[str, Any] = {"name": name, "program": "train.py", "method": method}
    content["metric"] = {"name": metric, "goal": goal}
    content |= {"run_cap": run_cap} if run_cap is not None else {}
    content["parameters"] = {item.key: item.spec for item in search.parameters}
    fixed = [*search.fixed, "logger=wandb", RUN_NAME.format(folder=f"sweeps/{name}")]
    content["command"] = ["${env}", "${interpreter}", "${program}", *fixed, "${args_no_hyphens}"]
    return content


def check(search: Search) -> Mapping[str, Any]:
    """Compose and validate every configuration that `search.to_check` lists; the first one.

    Raises UserError naming the overrides that were refused.
    """
    from sm_diffusion.app.compose import composed

    first: Mapping[str, Any] | None = None
    for overrides in search.to_check():
        try:
            found = composed("train", overrides)
        except UserError as error:
            searched = " ".join(overrides[len(search.fixed) :]) or "the fixed settings"
            hint = "; for whole numbers write int(interval(a,b))" if "to Integer" in str(error) else ""
            named = "" if str(error).startswith(searched) else f"{searched}: "
            raise UserError(f"{named}{error}{hint}") from None
        first = first or found
    assert first is not None
    return first


def sweep_text(content: Mapping[str, Any], command: str) -> str:
    text: str = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, width=110)
    return f"# Made by: {command}\n{text}"


def refuse_own_keys(words: Sequence[str]) -> None:
    """Keys that the sweep sets for each run."""
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if key in OWN_KEYS:
            raise UserError(f"{word}: set for each run of the sweep; leave it out")
