"""Rows of the benchmark data sets: from a local file in the published layout, or from the hub.

    HumanEval, MBPP, GSM8K, MATH-500, and HumanEval+ / MBPP+ (EvalPlus, Liu et al. 2023, arXiv 2305.01210) in either of
    their two layouts: the released jsonl (`base_input`, `plus_input`) and the hub's (a self-contained `test`).

Nothing is downloaded unless no file was given, and `datasets` is imported only then.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sm_diffusion.files import digest, parse_json
from sm_diffusion.registry import find, names, register
from sm_diffusion.types import UserError

ENVIRONMENT_VARIABLE = "SMD_BENCH_DATA"

_HUMANEVAL = ("task_id", "prompt", "entry_point", "canonical_solution", "test")
_EVALPLUS = ("task_id", "prompt", "entry_point", "canonical_solution", "base_input", "plus_input", "atol")


class Source(NamedTuple):
    """A benchmark: where its rows come from, and what its published protocol gives an answer.

    hub:        (repository, configuration or None, split) on the hub.
    files:      names looked for in the folder that SMD_BENCH_DATA names.
    layouts:    the sets of fields a row may have; the first that fits is used.
    key:        field that identifies a row; None where rows are numbered.
    new_tokens: of an answer.
    runs_code:  an answer is a program.
    """

    hub: tuple[str, str | None, str]
    files: tuple[str, ...]
    layouts: tuple[tuple[str, ...], ...]
    key: str | None
    new_tokens: int
    runs_code: bool = False


@register("benchmark", "humaneval")
def humaneval() -> Source:
    """164 functions to complete (Chen et al. 2021, arXiv 2107.03374)."""
    files = ("HumanEval.jsonl.gz", "HumanEval.jsonl")
    return Source(("openai/openai_humaneval", None, "test"), files, (_HUMANEVAL,), "task_id", 768, runs_code=True)


@register("benchmark", "humaneval_plus")
def humaneval_plus() -> Source:
    """HumanEval with EvalPlus' tests."""
    files = ("HumanEvalPlus.jsonl.gz", "HumanEvalPlus.jsonl")
    layouts = (_EVALPLUS, _HUMANEVAL)
    return Source(("evalplus/humanevalplus", None, "test"), files, layouts, "task_id", 768, runs_code=True)


@register("benchmark", "mbpp")
def mbpp() -> Source:
    """500 short programs (Austin et al. 2021, arXiv 2108.07732). Dream's own script gives 1,024 new tokens."""
    hub = ("google-research-datasets/mbpp", "full", "train+test+validation+prompt")
    layout = ("task_id", "text", "code", "test_list", "test_setup_code")
    return Source(hub, ("mbpp.jsonl",), (layout,), "task_id", 512, runs_code=True)


@register("benchmark", "mbpp_plus")
def mbpp_plus() -> Source:
    """378 of MBPP's programs with EvalPlus' tests."""
    files = ("mbpp_plus_v1.jsonl", "MbppPlus.jsonl.gz", "MbppPlus.jsonl")
    layouts = ((*_EVALPLUS, "assertion"), ("task_id", "prompt", "code", "test_list", "test"))
    return Source(("evalplus/mbppplus", None, "test"), files, layouts, "task_id", 512, runs_code=True)


@register("benchmark", "gsm8k")
def gsm8k() -> Source:
    """1,319 problems of numbers (Cobbe et al. 2021, arXiv 2110.14168)."""
    return Source(("openai/gsm8k", "main", "test"), ("gsm8k_test.jsonl",), (("question", "answer"),), None, 256)


@register("benchmark", "math500")
def math500() -> Source:
    """500 problems of MATH (Hendrycks et al. 2021, arXiv 2103.03874)."""
    layout = ("problem", "answer", "unique_id")
    return Source(("HuggingFaceH4/MATH-500", None, "test"), ("math500.jsonl",), (layout,), "unique_id", 512)


# MBPP (Austin et al. 2021, arXiv 2108.07732): task_id ranges of its splits; the prompts use tasks 2, 3 and 4.
MBPP_SPLITS: Mapping[str, range] = {
    "few_shot": range(2, 5),
    "test": range(11, 511),
    "validation": range(511, 601),
    "train": range(601, 975),
    "all": range(1, 975),
}


@dataclass(frozen=True)
class TaskRows:
    """Validated rows of one task.

    origin: file path or hub name, for messages and the protocol.
    sha256: of the file's bytes, or of the rows as canonical JSON when they came from the hub.
    rows:   one mapping a problem, with at least the fields of one layout.
    """

    task: str
    origin: str
    sha256: str
    rows: tuple[Mapping[str, Any], ...]


def source_of(task: str) -> Source:
    """Raises UserError that lists the tasks when there is no such task."""
    if task not in names("benchmark"):
        raise UserError(f"task: no task {task!r}; choose from {', '.join(sorted(names('benchmark')))}")
    found: Source = find("benchmark", task)()
    return found


def local_file(task: str) -> Path | None:
    """The task's file in the folder that SMD_BENCH_DATA names, or None. UserError when that folder is missing."""
    folder = os.environ.get(ENVIRONMENT_VARIABLE)
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise UserError(f"{ENVIRONMENT_VARIABLE}: no folder {folder}; unset it to load from the hub")
    candidates = [Path(folder) / name for name in source_of(task).files]
    return next((path for path in candidates if path.is_file()), None)


def load_rows(task: str, path: str | Path | None = None, *, split: str = "test") -> TaskRows:
    """Rows of a task, in file order.

    Args:
        task:  a benchmark of the registry.
        path:  a .jsonl or .jsonl.gz file; None looks in SMD_BENCH_DATA, then on the hub.
        split: MBPP only, one of MBPP_SPLITS; the other files hold their test set alone.
    Raises: UserError for an unknown task or split, a missing file, a line that is no JSON object, a missing field
        (named with file, line and the fields found), a repeated id, or no rows.
    """
    source = source_of(task)
    if split not in MBPP_SPLITS or (task != "mbpp" and split != "test"):
        choices = ", ".join(MBPP_SPLITS) if task == "mbpp" else "test"
        raise UserError(f"split: {task} has no split {split!r}; choose from {choices}")
    found = Path(path) if path is not None else local_file(task)
    if found is None:
        origin, rows, sha256 = _from_hub(source)
    else:
        origin, rows, sha256 = _from_file(found)
    numbered = [(number, _checked(row, source, origin, number)) for number, row in rows]
    _refuse_repeats(numbered, source, origin)
    kept = [row for _, row in numbered]
    if task == "mbpp":
        kept = [row for row in kept if int(row["task_id"]) in MBPP_SPLITS[split]]
    if not kept:
        raise UserError(f"{origin}: no {task} rows for split {split}")
    return TaskRows(task, origin, sha256, tuple(kept))


def _from_file(path: Path) -> tuple[str, list[tuple[int, Any]], str]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .jsonl or .jsonl.gz file, or none to load from the hub")
    data = path.read_bytes()
    try:
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path}: unreadable ({error}); expected UTF-8 JSON lines, gzipped if named .gz") from None
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        rows.append((number, parse_json(line, f"{path}, line {number}", advice="repair the line")))
    return str(path), rows, digest(data)


def _from_hub(source: Source) -> tuple[str, list[tuple[int, Any]], str]:
    name, configuration, split = source.hub
    try:
        import datasets
    except ImportError:
        raise UserError(f"{name}: loading from the hub needs `pip install datasets`, or give a local file") from None
    try:
        loaded: Iterable[Any] = datasets.load_dataset(name, configuration, split=split)
    except Exception as error:  # the hub's client raises many kinds: no network, no such data set, no permission
        first = (str(error).splitlines() or [type(error).__name__])[0]
        message = f"{name}: could not be loaded from the hub ({first}); give a local file or set {ENVIRONMENT_VARIABLE}"
        raise UserError(message) from None
    rows = [(number, dict(row)) for number, row in enumerate(loaded, start=1)]
    canonical = json.dumps([row for _, row in rows], sort_keys=True)
    return f"hub:{name}" + (f"/{configuration}" if configuration else ""), rows, digest(canonical)


def _checked(row: Any, source: Source, origin: str, number: int) -> Mapping[str, Any]:
    """The row, if it fits one of the layouts."""
    if not isinstance(row, dict):
        raise UserError(f"{origin}: line {number} is a {type(row).__name__}, expected an object with fields")
    missing = [[name for name in layout if row.get(name) is None] for layout in source.layouts]
    if all(missing):
        fewest = min(missing, key=len)
        fields = ", ".join(sorted(row)) or "none"
        raise UserError(f"{origin}: line {number}: missing field {', '.join(fewest)}; fields found: {fields}")
    return row


def _refuse_repeats(rows: list[tuple[int, Mapping[str, Any]]], source: Source, origin: str) -> None:
    seen: dict[str, int] = {}
    for number, row in rows if source.key else []:
        key = str(row[source.key or ""])
        if key in seen:
            raise UserError(f"{origin}: line {number}: {source.key} {key} is on line {seen[key]} already")
        seen[key] = number
