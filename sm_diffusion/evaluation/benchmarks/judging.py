"""Scores of answers to a task: one record an answer, pass@k, and the counts a reader needs to trust the number."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sm_diffusion.evaluation.benchmarks.extract import Extracted
from sm_diffusion.evaluation.benchmarks.pass_at_k import mean_pass_at_k
from sm_diffusion.evaluation.benchmarks.tasks import Problem, Task
from sm_diffusion.evaluation.execution.executor import Executor, Job, Verdict
from sm_diffusion.types import UserError


@dataclass(frozen=True)
class Answer:
    """Generated text (without prompt or prefix). truncated: the token budget ended it, no end token was drawn."""

    task_id: str
    text: str
    truncated: bool = False


@dataclass(frozen=True)
class Record:
    """Outcome of one answer.

    sample:    number of the answer among those to its problem, from 0.
    extracted: the program or value judged, None where nothing was found.
    how:       the extraction rule that fired.
    verdicts:  status, detail and seconds for each label of the tests that ran; empty for numbers and math.
    """

    task_id: str
    sample: int
    passed: bool
    extracted: str | None
    how: str
    empty: bool
    truncated: bool
    verdicts: Mapping[str, Mapping[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Plain dict for a per-problem jsonl file."""
        return asdict(self)


@dataclass(frozen=True)
class Score:
    """Records in the order of the answers, and a summary for results.json."""

    records: tuple[Record, ...]
    summary: Mapping[str, Any]


def score_answers(
    task: Task,
    answers: Sequence[Answer],
    executor: Executor | None = None,
    *,
    k: Sequence[int] = (1,),
    allow_missing: bool = False,
) -> Score:
    """Judge answers, any number a problem.

    A problem with several sets of tests (`base`, `plus`) passes when all hold; later sets are not run once one failed.
    Equal programs of one problem run once. `summary` holds pass@k for each k, `base_pass@k` where there is a base
    set, and how many answers were empty, truncated, without anything extracted, or not judged because the executor
    itself failed (`harness_errors`: must be 0 for a score to be believed; they count as not passed).

    Raises: UserError for answers to unknown problems, for problems without an answer unless `allow_missing` (they are
        then left out), for fewer than k answers, and for a code task without an executor.
    """
    problems = {problem.task_id: problem for problem in task.problems}
    _refuse_bad_ids(task, problems, answers, allow_missing=allow_missing)
    records = judge_answers(task, answers, executor)
    return Score(tuple(records), summarize(records, k))


def judge_answers(task: Task, answers: Sequence[Answer], executor: Executor | None = None) -> list[Record]:
    """A record for each answer, in order. UserError for a code task without an executor."""
    problems = {problem.task_id: problem for problem in task.problems}
    found = [task.extract(problems[answer.task_id], answer.text) for answer in answers]
    if task.runs_code:
        if executor is None:
            raise UserError(f"{task.name}: its answers are programs; give an Executor(allow_code_execution=True)")
        verdicts = _run(problems, answers, found, executor)
    else:
        verdicts = [{} for _ in answers]
    seen: Counter[str] = Counter()
    records = []
    for answer, extracted, outcome in zip(answers, found, verdicts, strict=True):
        passed = _passed(task, problems[answer.task_id], extracted, outcome)
        records.append(_record(answer, seen[answer.task_id], passed, extracted, outcome))
        seen[answer.task_id] += 1
    return records


def _refuse_bad_ids(
    task: Task, problems: Mapping[str, Problem], answers: Sequence[Answer], *, allow_missing: bool
) -> None:
    given = {answer.task_id for answer in answers}
    unknown = sorted(given - set(problems))
    if unknown:
        raise UserError(f"{task.name}: answers to {len(unknown)} unknown problems: {', '.join(unknown[:3])}")
    missing = [name for name in problems if name not in given]
    if missing and (not allow_missing or not given):
        raise UserError(
            f"{task.name}: {len(missing)} of {len(problems)} problems have no answer: {', '.join(missing[:3])}"
        )


def _run(
    problems: Mapping[str, Problem], answers: Sequence[Answer], found: Sequence[Extracted], executor: Executor
) -> list[dict[str, Verdict]]:
    """Verdicts by label of each answer; the labels run one after the other, each on what passed the one before."""
    outcomes: list[dict[str, Verdict]] = [{} for _ in answers]
    alive = [index for index, extracted in enumerate(found) if extracted.value is not None]
    labels = list(next(iter(problems.values())).checks or {})
    for label in labels:
        groups: dict[tuple[str, str], list[int]] = defaultdict(list)
        for index in alive:
            groups[answers[index].task_id, found[index].value or ""].append(index)
        jobs = []
        for task_id, program in groups:
            problem = problems[task_id]
            assert problem.checks is not None
            jobs.append(Job(program, problem.checks[label], executor.limits_for(problem.limits)))
        for indices, verdict in zip(groups.values(), executor.run_many(jobs), strict=True):
            for index in indices:
                outcomes[index][label] = verdict
        alive = [index for index in alive if outcomes[index][label].passed]
    return outcomes


def _passed(task: Task, problem: Problem, extracted: Extracted, outcome: Mapping[str, Verdict]) -> bool:
    if extracted.value is None:
        return False
    if task.runs_code:
        return len(outcome) == len(problem.checks or {}) and all(verdict.passed for verdict in outcome.values())
    return task.matches(problem, extracted.value)


def _record(answer: Answer, sample: int, passed: bool, extracted: Extracted, outcome: Mapping[str, Verdict]) -> Record:
    return Record(
        task_id=answer.task_id,
        sample=sample,
        passed=passed,
        extracted=extracted.value,
        how=extracted.how,
        empty=not answer.text.strip(),
        truncated=answer.truncated,
        verdicts={
            label: {"status": verdict.status, "detail": verdict.detail, "seconds": round(verdict.seconds, 3)}
            for label, verdict in outcome.items()
        },
    )


def summarize(records: Sequence[Record], k: Sequence[int]) -> dict[str, Any]:
    """pass@k and counts, see `score_answers`. UserError for fewer than k answers to a problem."""
    counts: dict[str, list[bool]] = defaultdict(list)
    base: dict[str, list[bool]] = defaultdict(list)
    has_base = any("base" in record.verdicts for record in records)
    for record in records:
        counts[record.task_id].append(record.passed)
        base[record.task_id].append(record.verdicts.get("base", {}).get("status") == "passed")
    summary: dict[str, Any] = {"num_problems": len(counts), "num_answers": len(records)}
    for size in k:
        summary[f"pass@{size}"] = mean_pass_at_k([(len(flags), sum(flags)) for flags in counts.values()], size)
        if has_base:
            pairs = [(len(flags), sum(flags)) for flags in base.values()]
            summary[f"base_pass@{size}"] = mean_pass_at_k(pairs, size)
    statuses = Counter(str(verdict["status"]) for record in records for verdict in record.verdicts.values())
    return {
        **summary,
        "empty": sum(record.empty for record in records),
        "truncated": sum(record.truncated for record in records),
        "extraction_failures": sum(record.extracted is None for record in records),
        "harness_errors": statuses["error"],
        "extraction_rules": dict(sorted(Counter(record.how for record in records).items())),
        "verdicts": dict(sorted(statuses.items())),
    }
