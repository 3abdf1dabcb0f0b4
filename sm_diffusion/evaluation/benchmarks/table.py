"""The table a sweep ends in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sm_diffusion.files import flat

Row = Mapping[str, Any]
# What may differ between the rows of one table without a word: it is a column, or the model itself.
_COLUMNS_OF_THEIR_OWN = (
    *("nfe", "steps", "feedback", "checkpoint", "checkpoint_sha256", "empty", "truncated"),
    *("extraction_failures", "harness_errors", "sampler.num_steps", "sampler.tokens_per_step"),
)


def score_table(rows: Sequence[Row], beside: Sequence[Row] = ()) -> str:
    """Heading, one line a model and budget, and what differs between rows that ought to agree."""
    everything = [*rows, *beside]
    first = rows[0]
    protocol = first["protocol"]
    ks = [name for name in first if "pass@" in name and not name.endswith("_std")]
    order = sorted(everything, key=lambda row: -_fraction(row["budget"]))
    header = ["NFE", "steps", "model", *ks, "evaluations", "empty", "truncated", "no answer", "errors", "s/answer"]
    body = [[_cell(row, name) for name in ("budget", "steps", "model")] + _numbers(row, ks) for row in order]
    lines = [_heading(first, protocol), *_aligned([header, *body])]
    if any(row["harness_errors"] for row in everything):
        lines.append("errors: answers the executor itself could not run, counted as not passed; the score is not final")
    lines += [f"differs: {line}" for line in differences(everything)]
    return "\n".join(lines)


def _heading(row: Row, protocol: Row) -> str:
    seeds = ", ".join(map(str, protocol["seeds"]))
    text = (
        f"{row['task']}, protocol {protocol['protocol']}: {row['num_problems']} problems, "
        f"{protocol['num_samples']} answer{'s' if protocol['num_samples'] > 1 else ''} each, seed {seeds}, "
        f"{protocol['max_new_tokens']} new tokens, {protocol['style']} prompts"
    )
    for name, (used, wanted) in protocol["deviations"].items():
        text += f"\n  not as in the protocol: {name} = {used} (there {wanted})"
    return text


def _numbers(row: Row, ks: Sequence[str]) -> list[str]:
    scores = []
    for name in ks:
        std = row.get(f"{name}_std")
        value = row.get(name)
        scores.append("-" if value is None else f"{100 * value:.1f}" + ("" if std is None else f" ± {100 * std:.1f}"))
    total = row["num_answers"]
    counts = [f"{row[name]}/{total}" for name in ("empty", "truncated", "extraction_failures", "harness_errors")]
    return [*scores, f"{row['nfe']:.1f}", *counts, f"{row['seconds_per_answer']:.2f}"]


def _cell(row: Row, name: str) -> str:
    value = row["protocol"].get("steps") if name == "steps" else row[name]
    return "-" if value is None else str(value)


def _fraction(text: str) -> float:
    above, _, below = text.partition("/")
    try:
        return float(above) / float(below or 1)
    except ValueError:  # the sampler's own budget
        return 0.0


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    left = table[0].index("model")
    return [
        "  ".join(
            cell.ljust(width) if column == left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]


def differences(rows: Sequence[Row]) -> list[str]:
    """Settings of the protocol in which the rows do not agree, with their values."""
    protocols = [flat({k: v for k, v in row["protocol"].items() if k != "deviations"}) for row in rows]
    names = {name: None for protocol in protocols for name in protocol if name not in _COLUMNS_OF_THEIR_OWN}
    found = []
    for name in names:
        values = list(dict.fromkeys(str(protocol.get(name)) for protocol in protocols))
        if len(values) > 1:
            found.append(f"{name}: {' | '.join(value[:40] for value in values)}")
    return found
