"""What eval.py runs: load a checkpoint, run an evaluator, write `results.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import lightning as L

from sm_diffusion.app.build import EVALUATION_SEED, build_module
from sm_diffusion.app.build_generative import Evaluated, build_generative, build_zero_shot
from sm_diffusion.app.build_scores import evaluate_scores
from sm_diffusion.app.console import is_first_rank, quiet_libraries, say
from sm_diffusion.app.model import Model
from sm_diffusion.app.open_model import Given, open_model
from sm_diffusion.app.validate import validate_eval
from sm_diffusion.config.nodes import plain
from sm_diffusion.config.root import EvalConfig, TrainConfig
from sm_diffusion.config.schema_eval import GenerativeConfig, PerplexityConfig, ZeroShotConfig
from sm_diffusion.config.schema_scores import ScoresConfig
from sm_diffusion.data.chat.datamodule import ChatDataModule
from sm_diffusion.data.chat.settings import ChatSettings
from sm_diffusion.data.datamodule import TokenDataModule
from sm_diffusion.data.settings import DataSettings
from sm_diffusion.diffusion.sft import SFTSettings
from sm_diffusion.evaluation.base import EvalContext, EvalResult, Evaluator
from sm_diffusion.evaluation.perplexity import PerplexityEvaluator
from sm_diffusion.evaluation.results import environment
from sm_diffusion.files import write_json
from sm_diffusion.training.callbacks.validation import ValidationMetrics
from sm_diffusion.training.module import DiffusionModule
from sm_diffusion.training.run_folder import RunFolder
from sm_diffusion.training.strategies.settings import evaluation_strategy
from sm_diffusion.training.trainer_settings import accelerator_of, precision_of
from sm_diffusion.types import UserError


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Load a checkpoint, run the evaluator, write `results.json`."""
    validate_eval(config)
    quiet_libraries()
    if isinstance(config.evaluator, ScoresConfig):
        scores, model = evaluate_scores(config, config.evaluator)
        return _write(config, scores, model)
    model = open_model(config.checkpoint, Given.of(config))
    run = model.run
    run.data.eval_batch_sequences = config.batch_sequences
    if isinstance(config.evaluator, PerplexityConfig):
        run.data.max_validation_sequences = config.evaluator.max_sequences or run.data.max_validation_sequences
    finetuned = _make_independent_of_batches(run)
    datamodule = _datamodule(config, model)
    module = build_module(
        run, model.predictor, validation_sequences=datamodule.meta.splits["validation"].sequences
    )
    context = EvalContext(
        predictor=model.predictor,
        measure_nll=_nll_meter(config, module, datamodule),  # type: ignore[arg-type]
        bytes_per_token=datamodule.bytes_per_token("validation"),
        seed=config.seed,
    )
    evaluated = Evaluated(config=config, model=model, module=module, datamodule=datamodule)  # type: ignore[arg-type]
    result = build_evaluator(evaluated).evaluate(context)
    if finetuned and isinstance(config.evaluator, PerplexityConfig):
        result = replace(result, metrics=_finetuning_loss(result.metrics))
    return _write(config, result, model)


def _make_independent_of_batches(run: TrainConfig) -> bool:
    """Whether a model was fine-tuned. As published, a batch shares one time, and its padding counts as text: both
    would make the value depend on the batch. Here every row has its own time, and only the conversation counts."""
    if not isinstance(run.objective, SFTSettings):
        return False
    run.objective = replace(run.objective, times="uniform")
    if isinstance(run.data, ChatSettings):
        run.data.pads_are_maskable = False
    return True


def _finetuning_loss(metrics: Mapping[str, float]) -> dict[str, float]:
    """The objective of fine-tuning is no bound on the likelihood, so there is no perplexity to be made of it."""
    kept = {name: value for name, value in metrics.items() if name.startswith("val/nll")}
    return {name.replace("val/nll", "val/finetuning_loss"): value for name, value in kept.items()}


def _datamodule(config: EvalConfig, model: Model) -> TokenDataModule | ChatDataModule:
    """The corpus to evaluate on, encoded by the model's own tokenizer. UserError where it is by another one."""
    data = model.run.data
    if type(data) is DataSettings:
        raise UserError(f"checkpoint={config.checkpoint}: a folder does not say its corpus; give data=...")
    datamodule = data.datamodule(seed=model.run.seed, world_size=config.devices)
    datamodule.prepare()
    theirs, own = datamodule.tokenizer, model.tokenizer
    text = isinstance(datamodule, TokenDataModule)
    other = datamodule.tokenizer.fingerprint() != own.fingerprint() if text else False
    if other or (theirs.vocab_size, theirs.mask_id) != (own.vocab_size, own.mask_id):
        raise UserError(
            f"data={data.name}: its tokenizer ({data.tokenizer.kind}, {theirs.vocab_size} ids) is not that of "
            f"{config.checkpoint} ({own.vocab_size} ids): set data.tokenizer to the one it was trained with"
        )
    return datamodule


def _write(config: EvalConfig, result: EvalResult, model: Model) -> dict[str, Any]:
    """`results.json`; evaluators without a table of their own have their metrics printed."""
    results = {
        "name": config.evaluator.name,
        "metrics": result.metrics,
        "protocol": result.protocol,
        **({"scores": result.scores} if result.scores else {}),
        "checkpoint": model.source,
        "checkpoint_sha256": model.sha256,
        "checkpoint_step": model.step,
        "weights": model.weights,
        "seed": config.seed,
        "config": plain(config),
        **environment(),
    }
    if is_first_rank():
        path = RunFolder(config.output_dir).results
        write_json(path, results)
        for name, value in [] if result.scores else result.metrics.items():
            print(f"{name:<34} {value:.6g}")
        say(f"written to {path}")
    return results


def build_evaluator(evaluated: Evaluated) -> Evaluator:
    match evaluated.config.evaluator:
        case PerplexityConfig() as evaluator:
            return PerplexityEvaluator(feedback=evaluator.feedback, repeats=evaluator.repeats)
        case GenerativeConfig() as generative:
            return build_generative(evaluated, generative)
        case ZeroShotConfig() as zero_shot:
            return build_zero_shot(evaluated, zero_shot)
        case other:
            raise UserError(f"evaluator={other.name}: choose perplexity, generative, zero_shot or a benchmark")


def _nll_meter(
    config: EvalConfig, module: DiffusionModule, datamodule: TokenDataModule
) -> Callable[[bool, int], float]:
    accelerator = accelerator_of(config.accelerator)
    metrics = ValidationMetrics(bytes_per_token=datamodule.bytes_per_token("validation"))
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=config.devices,
        strategy=evaluation_strategy(accelerator, devices=config.devices),
        precision=precision_of(config.precision, accelerator),  # type: ignore[arg-type]
        callbacks=[metrics],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )

    def measure(feedback: bool, seed: int) -> float:
        module.validation_feedback = feedback
        module.noise = replace(module.noise, evaluation_seed=EVALUATION_SEED - 1 + seed)
        trainer.validate(module, datamodule=datamodule, verbose=False)
        return metrics.latest["val/nll" if feedback else "val/nll_without_feedback"]

    return measure
