"""Protocols of the benchmark scores: what each asks of the sampler, the prompts and the reading of answers.

See docs/code_evaluation.md, "Released" and "Official and ours". A row of scores records its protocol by name, and every
setting in which it deviates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from sm_diffusion.evaluation.benchmarks.task_data import source_of
from sm_diffusion.registry import find, register

PUBLISHED_NFE = ("1", "1/2", "1/4")  # steps per new token of the published tables


class BenchmarkProtocol(NamedTuple):
    """What a protocol asks for beside the benchmark's own budget of tokens.

    style:      of prompts to tasks that run code; the others are chat, but all are `released` where code is.
    rules:      how answers are read, one of `tasks.RULES`.
    sampler:    option of the group `sampler`.
    precision:  as Lightning spells it.
    """

    style: str
    rules: str
    sampler: str = "confidence_entropy"
    precision: str = "bf16-mixed"

    def style_for(self, benchmark: str) -> str:
        """The style in which it asks a benchmark's problems."""
        return self.style if source_of(benchmark).runs_code or self.style == "released" else "chat"


@register("protocol", "official")
def official() -> BenchmarkProtocol:
    """The published sampling; 0-shot chat prompts of this project, the first block of code is read."""
    return BenchmarkProtocol(style="chat", rules="first_block")


@register("protocol", "released")
def released() -> BenchmarkProtocol:
    """The prompts, the reading and the judging of the authors' code."""
    return BenchmarkProtocol(style="released", rules="released")


@register("protocol", "ours")
def ours() -> BenchmarkProtocol:
    """The published sampling; the answer is begun for the model, the block that defines the function is read."""
    return BenchmarkProtocol(style="chat_prefix", rules="search")


def protocol_of(name: str) -> BenchmarkProtocol:
    """The protocol registered under a name; UserError lists them."""
    found: BenchmarkProtocol = find("protocol", name, key="evaluator.protocol")()
    return found


def deviations(
    asked: BenchmarkProtocol, used: Mapping[str, Any], published: Mapping[str, Any], *, num_problems: int
) -> dict[str, list[Any]]:
    """{setting: [used, the protocol's]} for everything that is not as the protocol asks.

    Args:
        asked: the protocol.
        used: what a row of scores records of itself.
        published: settings of the protocol's sampler.
        num_problems: of the whole benchmark.
    """
    wanted: dict[str, Any] = {
        "style": asked.style_for(used["task"]),
        "max_new_tokens": source_of(used["task"]).new_tokens,
        "precision": asked.precision,
        "num_problems": num_problems,
    }
    found = {name: [used[name], value] for name, value in wanted.items() if used[name] != value}
    if used["nfe"] not in PUBLISHED_NFE:
        found["nfe"] = [used["nfe"], ", ".join(PUBLISHED_NFE)]
    for name, value in published.items():
        given = used["sampler"].get(name)
        if name != "num_steps" and given != value:
            found[f"sampler.{name}"] = [given, value]
    return found
