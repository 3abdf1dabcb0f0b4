"""From evaluation settings to the evaluator of benchmark scores."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy

from sm_diffusion.app.console import is_first_rank, say
from sm_diffusion.app.model import Model, named_sampler
from sm_diffusion.app.open_model import Given, open_model
from sm_diffusion.app.validate_scores import fraction_of
from sm_diffusion.config.nodes import plain
from sm_diffusion.config.root import EvalConfig
from sm_diffusion.config.schema_scores import ScoresConfig
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.evaluation.base import EvalContext, EvalResult
from sm_diffusion.evaluation.benchmarks.answers import AnswerPlan, AnswerStore
from sm_diffusion.evaluation.benchmarks.evaluator import ScoreEvaluator, Setting, rows_of
from sm_diffusion.evaluation.benchmarks.tasks import BUDGETS, Task, build_task
from sm_diffusion.evaluation.execution.executor import Executor
from sm_diffusion.evaluation.results import read_results
from sm_diffusion.sampling.settings import SamplerSettings
from sm_diffusion.training.run_folder import run_of
from sm_diffusion.training.trainer_settings import accelerator_of, precision_of
from sm_diffusion.types import UserError

OFFICIAL_NFE = ("1", "1/2", "1/4")


class Protocol(NamedTuple):
    """What a protocol asks for beside the task's own budget. style: of tasks that run code; others are chat, but all
    are `released` where code is.
    """

    sampler: str
    style: str
    rules: str
    precision: str


# docs/code_evaluation.md, "Official and ours".
PROTOCOLS = {
    "official": Protocol(sampler="confidence_entropy", style="chat", rules="first_block", precision="bf16-mixed"),
    "released": Protocol(sampler="confidence_entropy", style="released", rules="released", precision="bf16-mixed"),
    "ours": Protocol(sampler="confidence_entropy", style="chat_prefix", rules="search", precision="bf16-mixed"),
}


def evaluate_scores(config: EvalConfig, settings: ScoresConfig) -> tuple[EvalResult, Model]:
    """Everything cheap and everything that can be refused comes before the first answer is made."""
    model_free = _task(settings, settings.style or _style(settings))
    executor = _executor(settings, model_free) if is_first_rank() else None
    compare = [row for path in settings.compare for row in _earlier(path, settings.name)]
    model = open_model(config.checkpoint, Given.of(config))
    task = _task(settings, settings.style or (_style(settings) if model.chat else "completion"))
    if model.chat is None and task.style != "completion":
        raise UserError(f"evaluator.style={task.style}: the checkpoint has no chat form; set it to completion")
    evaluator = _evaluator(config, settings, model, task, executor, compare)
    context = EvalContext(
        predictor=model.predictor, measure_nll=_no_likelihood, bytes_per_token=1.0, seed=config.seed
    )
    return evaluator.evaluate(context), model


def _no_likelihood(feedback: bool, seed: int) -> float:
    raise AssertionError("benchmark scores read no validation text")


def _earlier(path: str, task: str) -> list[dict[str, Any]]:
    rows = rows_of(read_results(Path(path)), task)
    if not rows:
        raise UserError(f"evaluator.compare={path}: holds no scores of {task}; give the results.json of such a run")
    return rows


def _style(settings: ScoresConfig) -> str:
    code = settings.name.removesuffix("_plus") in ("humaneval", "mbpp")
    style = PROTOCOLS[settings.protocol].style
    return style if code or style == "released" else "chat"


def _task(settings: ScoresConfig, style: str) -> Task:
    return build_task(
        settings.name,
        None if settings.path is None else Path(settings.path).expanduser(),
        style=style,
        rules=PROTOCOLS[settings.protocol].rules,
    )


def _executor(settings: ScoresConfig, task: Task) -> Executor | None:
    """Of the first rank, which judges; a machine without a sandbox is refused before any answer is made."""
    if not task.runs_code:
        return None
    return Executor(
        allow_code_execution=settings.allow_code_execution,
        limits=settings.executor,
        workers=settings.executor.workers,
    )


def _evaluator(
    config: EvalConfig,
    settings: ScoresConfig,
    model: Model,
    task: Task,
    executor: Executor | None,
    compare: list[dict[str, Any]],
) -> ScoreEvaluator:
    accelerator = accelerator_of(config.accelerator)
    precision = precision_of(config.precision, accelerator)
    # One rank may finish long before another: no time limit on waiting for it.
    ddp = DDPStrategy(timeout=timedelta(days=30)) if config.devices > 1 else "auto"
    fabric = Fabric(
        accelerator=accelerator,
        devices=config.devices,
        strategy=ddp,
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    model.predictor.to(fabric.device)
    plan = AnswerPlan(
        task=task,
        tokenizer=model.tokenizer,
        chat=model.chat,
        limit=settings.limit,
        seeds=settings.seeds or [config.seed],
        num_samples=settings.num_samples,
        new_tokens=settings.new_tokens or task.max_new_tokens,
        max_length=model.positions,
        batch_sequences=config.batch_sequences,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        wait=fabric.barrier,
        autocast=fabric.autocast,
        say=say,
    )
    plan.prompt_ids()  # refuses what does not fit
    return ScoreEvaluator(
        settings=list(_settings(config, settings, model, plan, precision)),
        plan=plan,
        executor=executor,
        pass_at=settings.pass_at,
        compare=compare,
    )


def _settings(
    config: EvalConfig, settings: ScoresConfig, model: Model, plan: AnswerPlan, precision: str
) -> Iterator[Setting]:
    published = plain(named_sampler(PROTOCOLS[settings.protocol].sampler), "sampler")
    root = Path(settings.records_dir or Path(config.output_dir) / "records").expanduser()
    for name, predictor in _readings(settings, model, config):
        for nfe in settings.nfe or ["own"]:
            steps = None if nfe == "own" else int(fraction_of(nfe) * plan.new_tokens)
            sampler = config.sampler
            if steps is not None:
                sampler = sampler.with_total_steps(total=steps, new_tokens=plan.new_tokens)
            elif sampler.num_steps is not None and sampler.block_length is None:
                steps = sampler.num_steps
            label = nfe if nfe == "own" else str(fraction_of(nfe))
            protocol = _protocol(config, settings, plan, sampler, precision) | {
                "checkpoint": model.source,
                "checkpoint_sha256": model.sha256,
                "weights": model.weights,
                "feedback": isinstance(predictor, SoftMaskPredictor),
                "nfe": label,
                "steps": steps,
            }
            protocol["deviations"] = deviations(settings, protocol, plan, published)
            folder = root / name / f"nfe_{label.replace('/', '_')}"
            loop = model.sampler(sampler, predictor)
            yield Setting(
                model=name,
                nfe=label,
                steps=steps,
                sampler=loop,
                store=AnswerStore(folder, _key(protocol)),
                protocol=protocol,
            )


def _readings(
    settings: ScoresConfig, model: Model, config: EvalConfig
) -> Iterator[tuple[str, Predictor]]:
    label = settings.label or _label(config.checkpoint)
    soft = isinstance(model.predictor, SoftMaskPredictor)
    plain = HardMaskPredictor(model.predictor.denoiser, mask_id=model.predictor.mask_id).eval()
    if settings.feedback == "both" and not soft:
        raise UserError("evaluator.feedback=both: the checkpoint has no soft mask; leave evaluator.feedback out")
    if settings.feedback != "off":
        yield label, model.predictor
    if settings.feedback == "both" or (settings.feedback == "off" and soft):
        yield f"{label}-without-feedback", plain
    elif settings.feedback == "off":
        yield label, plain


def _label(checkpoint: str) -> str:
    """runs/sm/checkpoints/last.ckpt -> sm; a folder or hub id: its last part."""
    path = Path(checkpoint)
    run = run_of(path) if path.is_file() else None
    return path.stem if run is None else run.path.name


def _protocol(
    config: EvalConfig, settings: ScoresConfig, plan: AnswerPlan, sampler: SamplerSettings, precision: str
) -> dict[str, Any]:
    measure = plain(sampler, "sampler").get("measure")
    chat = None if plan.task.style == "completion" else plan.chat
    return {
        **plan.task.protocol(),
        "protocol": settings.protocol,
        "chat_template_sha256": None if chat is None else chat.template_sha256(),
        "max_new_tokens": plan.new_tokens,
        "num_problems": len(plan.problems),
        "order": sampler.name if measure is None else f"{sampler.name}, {measure}",
        "temperature": sampler.temperature,
        "top_p": sampler.top_p,
        "sampler": plain(sampler, "sampler"),
        "seeds": list(plan.seeds),
        "num_samples": plan.num_samples,
        "precision": precision,
    }


def _key(protocol: dict[str, Any]) -> dict[str, Any]:
    """What decides an answer: more seeds, samples or problems add answers, and a file may lie elsewhere."""
    free = ("seeds", "num_samples", "num_problems", "data", "deviations", "checkpoint", "nfe")
    return {name: value for name, value in protocol.items() if name not in free}


def deviations(
    settings: ScoresConfig, protocol: dict[str, Any], plan: AnswerPlan, published: dict[str, Any]
) -> dict[str, list[Any]]:
    """{setting: [used, the protocol's]} for everything that is not as the protocol asks."""
    asked = PROTOCOLS[settings.protocol]
    wanted: dict[str, Any] = {
        "style": _style(settings),
        "max_new_tokens": BUDGETS[settings.name],
        "precision": asked.precision,
        "num_problems": len(plan.task.problems),
    }
    found = {name: [protocol[name], value] for name, value in wanted.items() if protocol[name] != value}
    if protocol["nfe"] not in OFFICIAL_NFE:
        found["nfe"] = [protocol["nfe"], ", ".join(OFFICIAL_NFE)]
    for name, value in published.items():
        used = protocol["sampler"].get(name)
        if name != "num_steps" and used != value:
            found[f"sampler.{name}"] = [used, value]
    return found
