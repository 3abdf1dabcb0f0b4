"""What a user chooses of the benchmark scores: evaluator=humaneval and its siblings, see the group `benchmark`.

Everything cheap and everything that can be refused comes before the checkpoint is opened, and before any answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.evaluation.base import EvalContext, Evaluator, not_positive
from sm_diffusion.evaluation.benchmarks.answers import AnswerPlan, AnswerStore
from sm_diffusion.evaluation.benchmarks.evaluator import ScoreEvaluator, Setting, rows_of
from sm_diffusion.evaluation.benchmarks.protocols import BenchmarkProtocol, deviations, protocol_of
from sm_diffusion.evaluation.benchmarks.task_data import source_of
from sm_diffusion.evaluation.benchmarks.tasks import Style, Task, build_task
from sm_diffusion.evaluation.execution.executor import Executor
from sm_diffusion.evaluation.execution.limits import ExecutorSettings
from sm_diffusion.evaluation.results import read_results
from sm_diffusion.registry import choice, register
from sm_diffusion.sampling.settings import SamplerSettings
from sm_diffusion.types import UserError


@register("evaluator", "scores")
@dataclass
class ScoresSettings:
    """Answers of a model to a benchmark's problems, judged, at several budgets of network evaluations."""

    name: str = choice("benchmark")
    # released: the authors' prompts and reading | official: their sampling, our prompts | ours: recommended
    protocol: str = choice("protocol", "official")  # see docs/code_evaluation.md
    path: str | None = None  # .jsonl or .jsonl.gz of the published layout; null: SMD_BENCH_DATA, then the hub
    style: Style | None = None  # of the prompts; null: the protocol's, completion for base models
    limit: int | None = None  # the first problems only; null: all
    nfe: list[str] = field(default_factory=lambda: ["1", "1/2", "1/4"])  # steps per new token; []: the sampler's own
    new_tokens: int | None = None  # of an answer; null: as published for the task
    num_samples: int = 1  # answers a problem and seed
    pass_at: list[int] = field(default_factory=lambda: [1])  # the k of pass@k, each at most num_samples
    seeds: list[int] = field(default_factory=list)  # mean and spread over these; []: seed
    feedback: Literal["auto", "off", "both"] = "auto"  # soft-masking: as the checkpoint | off | two rows a budget
    allow_code_execution: bool = False  # run programs the model wrote, in the sandbox
    executor: ExecutorSettings = field(default_factory=ExecutorSettings)
    records_dir: str | None = None  # answers and verdicts, resumed from; null: <output_dir>/records
    label: str | None = None  # of this model in the table; null: from the checkpoint's path
    compare: list[str] = field(default_factory=list)  # results.json of earlier runs of the task, shown in the table

    # --------------------------------------------------------------------------------------------------- what is wrong

    def problems(self) -> Iterator[str]:
        yield from not_positive(self, "limit", "new_tokens", "num_samples")
        for k in self.pass_at or [0]:
            if not 1 <= k <= max(self.num_samples, 1):
                yield f"evaluator.pass_at={self.pass_at}: each must lie in 1 .. num_samples={self.num_samples}"
                break
        if len(set(self.seeds)) < len(self.seeds) or any(not 0 <= seed < 2**31 for seed in self.seeds):
            yield f"evaluator.seeds={self.seeds}: must be different numbers, 0 or larger"
        if self.path is not None and not Path(self.path).expanduser().is_file():
            yield f"evaluator.path={self.path}: no such file; give a .jsonl or .jsonl.gz file, or null for the hub"
        for path in self.compare:
            if not Path(path).is_file():
                yield f"evaluator.compare={path}: no such file; give a results.json of an earlier run of {self.name}"
        if source_of(self.name).runs_code:
            if not self.allow_code_execution:
                yield (
                    f"evaluator.allow_code_execution=false: {self.name} runs programs a model wrote; "
                    "set evaluator.allow_code_execution=true to run them in the sandbox"
                )
            yield from self.executor.problems()

    def problems_in_evaluation(self, sampler: SamplerSettings, devices: int) -> Iterator[str]:
        """Budgets that are no whole number of steps, or that the sampler cannot take."""
        new_tokens = self.new_tokens or source_of(self.name).new_tokens
        if new_tokens < 1:
            return
        seen = set()
        for text in self.nfe:
            try:
                value = fraction_of(text)
            except ValueError:
                yield f"evaluator.nfe={text}: not a number; write fractions of the new tokens, such as [1,1/2,1/4]"
                continue
            steps = value * new_tokens
            if not 0 < value <= 1 or steps.denominator != 1:
                yield (
                    f"evaluator.nfe={text}: gives {float(steps):g} steps for {new_tokens} new tokens; "
                    "it must be a whole number from 1 to the new tokens"
                )
            elif value in seen:
                yield f"evaluator.nfe={self.nfe}: {text} twice"
            else:
                try:
                    sampler.with_total_steps(total=int(steps), new_tokens=new_tokens)
                except UserError as error:
                    yield f"{error}; or set evaluator.nfe=[] for the sampler's own steps"
            seen.add(value)

    # ----------------------------------------------------------------------------------------------------------- build

    def build(self, context: EvalContext) -> Evaluator:
        asked = protocol_of(self.protocol)
        style = self.style or asked.style_for(self.name)
        task = self._task(style, asked)
        executor = self._executor(task) if context.first_rank else None
        compare = [row for path in self.compare for row in _earlier(path, self.name)]
        model = context.model
        if model.chat is None and style != "completion":
            if self.style is not None:
                raise UserError(f"evaluator.style={style}: the checkpoint has no chat form; set it to completion")
            task = self._task("completion", asked)
        processes = context.processes
        plan = AnswerPlan(
            task=task,
            tokenizer=model.tokenizer,
            chat=model.chat,
            limit=self.limit,
            seeds=self.seeds or [context.seed],
            num_samples=self.num_samples,
            new_tokens=self.new_tokens or task.max_new_tokens,
            max_length=model.positions,
            batch_sequences=context.batch_sequences,
            rank=processes.rank,
            world_size=processes.world_size,
            wait=processes.wait,
            autocast=processes.autocast,
            say=context.say,
        )
        plan.prompt_ids()  # refuses what does not fit
        return ScoreEvaluator(
            settings=list(self._rows(context, plan, asked)),
            plan=plan,
            executor=executor,
            pass_at=self.pass_at,
            compare=compare,
        )

    def _task(self, style: str, asked: BenchmarkProtocol) -> Task:
        path = None if self.path is None else Path(self.path).expanduser()
        return build_task(self.name, path, style=style, rules=asked.rules)

    def _executor(self, task: Task) -> Executor | None:
        """Of the first rank, which judges; a machine without a sandbox is refused before any answer is made."""
        if not task.runs_code:
            return None
        return Executor(
            allow_code_execution=self.allow_code_execution, limits=self.executor, workers=self.executor.workers
        )

    def _rows(self, context: EvalContext, plan: AnswerPlan, asked: BenchmarkProtocol) -> Iterator[Setting]:
        """A row of the table for every reading of the network and every budget."""
        model = context.model
        published = context.values_of(context.named_sampler(asked.sampler))
        root = Path(self.records_dir).expanduser() if self.records_dir else context.output_dir / "records"
        for name, predictor in self._readings(context):
            for nfe in self.nfe or ["own"]:
                steps = None if nfe == "own" else int(fraction_of(nfe) * plan.new_tokens)
                sampler = context.sampler
                if steps is not None:
                    sampler = sampler.with_total_steps(total=steps, new_tokens=plan.new_tokens)
                elif sampler.num_steps is not None and sampler.block_length is None:
                    steps = sampler.num_steps
                label = nfe if nfe == "own" else str(fraction_of(nfe))
                protocol = self._protocol(context, plan, sampler) | {
                    "checkpoint": model.source,
                    "checkpoint_sha256": model.sha256,
                    "weights": model.weights,
                    "feedback": isinstance(predictor, SoftMaskPredictor),
                    "nfe": label,
                    "steps": steps,
                }
                protocol["deviations"] = deviations(
                    asked, protocol, published, num_problems=len(plan.task.problems)
                )
                folder = root / name / f"nfe_{label.replace('/', '_')}"
                yield Setting(
                    model=name,
                    nfe=label,
                    steps=steps,
                    sampler=model.sampler(sampler, predictor),
                    store=AnswerStore(folder, _key(protocol)),
                    protocol=protocol,
                )

    def _readings(self, context: EvalContext) -> Iterator[tuple[str, Predictor]]:
        """The network as it is, without its feedback, or both: (name in the table, predictor)."""
        label = self.label or _label(context.checkpoint)
        predictor = context.model.predictor
        soft = isinstance(predictor, SoftMaskPredictor)
        plain = HardMaskPredictor(predictor.denoiser, mask_id=predictor.mask_id).eval()
        if self.feedback == "both" and not soft:
            raise UserError("evaluator.feedback=both: the checkpoint has no soft mask; leave evaluator.feedback out")
        if self.feedback != "off":
            yield label, predictor
        if self.feedback == "both" or (self.feedback == "off" and soft):
            yield f"{label}-without-feedback", plain
        elif self.feedback == "off":
            yield label, plain

    def _protocol(self, context: EvalContext, plan: AnswerPlan, sampler: SamplerSettings) -> dict[str, Any]:
        values = context.values_of(sampler)
        measure = values.get("measure")
        chat = None if plan.task.style == "completion" else plan.chat
        return {
            **plan.task.protocol(),
            "protocol": self.protocol,
            "chat_template_sha256": None if chat is None else chat.template_sha256(),
            "max_new_tokens": plan.new_tokens,
            "num_problems": len(plan.problems),
            "order": sampler.name if measure is None else f"{sampler.name}, {measure}",
            "temperature": sampler.temperature,
            "top_p": sampler.top_p,
            "sampler": values,
            "seeds": list(plan.seeds),
            "num_samples": plan.num_samples,
            "precision": context.processes.precision,
        }


def fraction_of(text: str) -> Fraction:
    """A budget such as 1, 1/2 or 0.25. ValueError for anything else."""
    try:
        return Fraction(text.replace(" ", ""))
    except ZeroDivisionError:
        raise ValueError(text) from None


def _earlier(path: str, task: str) -> list[dict[str, Any]]:
    rows = rows_of(read_results(Path(path)), task)
    if not rows:
        raise UserError(f"evaluator.compare={path}: holds no scores of {task}; give the results.json of such a run")
    return rows


def _label(checkpoint: str) -> str:
    """runs/sm/checkpoints/last.ckpt -> sm; a folder or hub id: its last part."""
    path = Path(checkpoint)
    return path.parents[1].name if path.is_file() and path.parent.name == "checkpoints" else path.stem


def _key(protocol: dict[str, Any]) -> dict[str, Any]:
    """What decides an answer: more seeds, samples or problems add answers, and a file may lie elsewhere."""
    free = ("seeds", "num_samples", "num_problems", "data", "deviations", "checkpoint", "nfe")
    return {name: value for name, value in protocol.items() if name not in free}
