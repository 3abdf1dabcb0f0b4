"""Settings of the benchmark scores: evaluator=humaneval | humaneval_plus | mbpp | mbpp_plus | gsm8k | math500."""

from __future__ import annotations

from dataclasses import dataclass, field

from sm_diffusion.config.schema_eval import EvaluatorConfig
from sm_diffusion.evaluation.execution.limits import ExecutorSettings
from sm_diffusion.registry import register


@register("evaluator", "scores")
@dataclass
class ScoresConfig(EvaluatorConfig):
    """Answers of a model to a benchmark's problems, judged, at several budgets of network evaluations."""

    # released: the authors' prompts and reading | official: their sampling, our prompts | ours: recommended
    protocol: str = "official"  # see docs/code_evaluation.md
    path: str | None = None  # .jsonl or .jsonl.gz of the published layout; null: SMD_BENCH_DATA, then the hub
    style: str | None = None  # chat | chat_prefix | completion; null: the protocol's, completion for base models
    limit: int | None = None  # the first problems only; null: all
    nfe: list[str] = field(default_factory=lambda: ["1", "1/2", "1/4"])  # steps per new token; []: the sampler's own
    new_tokens: int | None = None  # of an answer; null: as published for the task
    num_samples: int = 1  # answers a problem and seed
    pass_at: list[int] = field(default_factory=lambda: [1])  # the k of pass@k, each at most num_samples
    seeds: list[int] = field(default_factory=list)  # mean and spread over these; []: seed
    feedback: str = "auto"  # soft-masking: auto (as the checkpoint) | off | both (two rows a budget)
    allow_code_execution: bool = False  # run programs the model wrote, in the sandbox
    executor: ExecutorSettings = field(default_factory=ExecutorSettings)
    records_dir: str | None = None  # answers and verdicts, resumed from; null: <output_dir>/records
    label: str | None = None  # of this model in the table; null: from the checkpoint's path
    compare: list[str] = field(default_factory=list)  # results.json of earlier runs of the task, shown in the table
