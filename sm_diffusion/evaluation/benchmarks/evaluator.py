"""Scores of a model on a benchmark at several budgets of network evaluations, with the protocol of each."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sm_diffusion.evaluation.base import EvalContext, EvalResult, Evaluator
from sm_diffusion.evaluation.benchmarks.answers import AnswerPlan, AnswerStore, GeneratedAnswer, judged, make_answers
from sm_diffusion.evaluation.benchmarks.judging import Record, summarize
from sm_diffusion.evaluation.benchmarks.table import score_table
from sm_diffusion.evaluation.execution.executor import Executor
from sm_diffusion.evaluation.spread import spread
from sm_diffusion.files import key_digest
from sm_diffusion.sampling import Sampler

COUNTS = ("empty", "truncated", "extraction_failures", "harness_errors")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One row of the table.

    model:    how the table calls the checkpoint and its reading.     nfe: budget as asked for, such as "1/2".
    steps:    of the sampler, in all; None: it decides itself.
    protocol: all that another person needs for the same number.
    """

    model: str
    nfe: str
    steps: int | None
    sampler: Sampler
    store: AnswerStore
    protocol: Mapping[str, Any]

    @property
    def slug(self) -> str:
        return f"{self.model}/nfe_{self.nfe.replace('/', '_')}"


class ScoreEvaluator(Evaluator):
    """Makes the answers of every setting, judges them, prints one table. Only rank 0 judges.

    Metrics `<task>/<model>/nfe_<budget>/<number>`; rows for results.json in `EvalResult.scores`.
    executor: for code tasks.     pass_at: the k of pass@k.     compare: rows of earlier runs, shown beside.
    """

    def __init__(
        self,
        *,
        settings: Sequence[Setting],
        plan: AnswerPlan,
        executor: Executor | None,
        pass_at: Sequence[int],
        compare: Sequence[Mapping[str, Any]],
    ) -> None:
        self.settings = list(settings)
        self.plan = plan
        self.executor = executor
        self.pass_at = list(pass_at)
        self.compare = list(compare)

    def evaluate(self, context: EvalContext) -> EvalResult:
        plan = self.plan
        for setting in self.settings:
            make_answers(setting.store, setting.sampler, plan, label=f"{plan.task.name} {setting.slug}")
        plan.wait()
        if plan.rank:
            return EvalResult(metrics={})
        asked = {problem.task_id: problem.limits for problem in plan.task.problems}
        described = None if self.executor is None else self.executor.describe(asked)
        # Where the limits or the isolation changed, programs are run again.
        judge = key_digest({"executor": described})[:16]
        rows: list[dict[str, Any]] = []
        metrics: dict[str, float] = {}
        for setting in self.settings:
            for line in judged(setting.store, plan, self.executor, judge):
                plan.say(f"{plan.task.name} {setting.slug}: {line}")
            row = self._row(setting, judge) | {"executor": described}
            rows.append(row)
            metrics |= {f"{plan.task.name}/{setting.slug}/{name}": float(row[name]) for name in self._numbers(row)}
        plan.say(score_table(rows, self.compare))
        return EvalResult(metrics=metrics, protocol=dict(self.settings[0].protocol), scores=rows)

    def _numbers(self, row: Mapping[str, Any]) -> list[str]:
        return [name for name, value in row.items() if isinstance(value, int | float)]

    def _row(self, setting: Setting, judge: str) -> dict[str, Any]:
        made, verdicts = setting.store.answers(), setting.store.verdicts(judge)
        slots = self.plan.slots()
        answers, records = [made[slot] for slot in slots], [verdicts[slot] for slot in slots]
        path = setting.store.write_records(answers, records)
        return {
            "task": self.plan.task.name,
            "model": setting.model,
            "budget": setting.nfe,
            **self._scores(answers, records),
            **_costs(answers),
            "records": str(path),
            "protocol": {**setting.protocol, **{name: summarize(records, [1])[name] for name in COUNTS}},
        }

    def _scores(self, answers: Sequence[GeneratedAnswer], records: Sequence[Record]) -> dict[str, Any]:
        """pass@k: mean over the seeds, and its standard deviation where there are several; counts: over all answers."""
        by_seed = {
            seed: summarize([r for a, r in zip(answers, records, strict=True) if a.seed == seed], self.pass_at)
            for seed in self.plan.seeds
        }
        first = by_seed[self.plan.seeds[0]]
        found: dict[str, Any] = {}
        for name in (name for name in first if "pass@" in name):
            values = spread([summary[name] for summary in by_seed.values()])
            found[name] = values.mean
            if values.std is not None:
                found[f"{name}_std"] = values.std
        whole = summarize(records, [1])
        counts = {name: whole[name] for name in ("num_problems", "num_answers", *COUNTS)}
        details = {name: whole[name] for name in ("extraction_rules", "verdicts")}
        per_seed = {str(seed): {k: v for k, v in s.items() if "pass@" in k} for seed, s in by_seed.items()}
        return {**found, **counts, **details, "per_seed": per_seed}


def _costs(answers: Sequence[GeneratedAnswer]) -> dict[str, float]:
    """nfe: evaluations an answer; tokens: before the end token; seconds: of one process, an answer."""
    return {
        "nfe": statistics.fmean(answer.nfe for answer in answers),
        "answer_tokens": statistics.fmean(answer.num_tokens for answer in answers),
        "seconds_per_answer": statistics.fmean(answer.seconds for answer in answers),
    }


def rows_of(results: Mapping[str, Any], task: str) -> list[dict[str, Any]]:
    """The rows of an earlier run's results.json; empty where they are of another task or kind."""
    rows = results.get("scores") or []
    return [json.loads(json.dumps(row)) for row in rows if row.get("task") == task]
