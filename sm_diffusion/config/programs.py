"""What train.py and eval.py run, from a typed configuration to files on disk."""

from __future__ import annotations

import logging
import shutil
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import OmegaConf

from sm_diffusion.config import schema
from sm_diffusion.config.build import EVALUATION_SEED, build_datamodule, build_module, build_predictor
from sm_diffusion.config.store import restore_train_config
from sm_diffusion.config.trainer import Built, accelerator_of, build_trainer, precision_of
from sm_diffusion.config.validate import validate_eval, validate_train, validate_vocabulary
from sm_diffusion.data.datamodule import TokenDataModule
from sm_diffusion.denoisers.convert import Weights, check_fits, load_into, read_weights
from sm_diffusion.diffusion.predictor import Predictor, SoftMaskPredictor
from sm_diffusion.evaluation.base import EvalContext, Evaluator
from sm_diffusion.evaluation.perplexity import PerplexityEvaluator
from sm_diffusion.evaluation.results import environment, sha256_of, write_json
from sm_diffusion.training.callbacks import ValidationMetrics
from sm_diffusion.training.module import DiffusionModule
from sm_diffusion.types import UserError


def say(text: str) -> None:
    """A line for the person who started the run, once for all ranks."""
    if rank_zero_only.rank == 0:
        print(text, file=sys.stderr, flush=True)


def train(config: schema.TrainConfig) -> dict[str, Any]:
    """Train, validate, and write the run folder; returns what `results.json` holds."""
    validate_train(config)
    _quiet_libraries()
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    folder = Path(config.output_dir)
    world_size = config.trainer.devices * config.trainer.num_nodes
    datamodule = build_datamodule(config.data, seed=config.seed, world_size=world_size)
    datamodule.prepare()
    validate_vocabulary(config, datamodule.vocab_size)

    L.seed_everything(config.seed, verbose=False)
    predictor = build_predictor(
        config, vocab_size=datamodule.vocab_size, mask_id=datamodule.tokenizer.mask_id
    )
    if config.init_from is not None:
        initialise(predictor, read_weights(config.init_from, weights=config.init_weights))
    module = build_module(
        config, predictor, validation_sequences=datamodule.meta.splits["validation"].sequences
    )
    ckpt_path = str(folder / "checkpoints" / "last.ckpt") if config.ckpt_path == "last" else config.ckpt_path
    if ckpt_path is not None:
        check_fits(module, ckpt_path)
    if rank_zero_only.rank == 0:
        _start_folder(config, folder, predictor)
    built = build_trainer(config, bytes_per_token=datamodule.bytes_per_token("validation"))
    built.trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
    return _finish(config, built, module, datamodule)


def initialise(predictor: Predictor, weights: Weights) -> None:
    """Start from a checkpoint: MDLM -> SM keeps the configured omegas, SM -> SM takes the checkpoint's."""
    load_into(predictor.denoiser, weights.denoiser, source=weights.path, what="model")
    if isinstance(predictor, SoftMaskPredictor):
        own = predictor.soft_mask.state_dict()
        loaded = {name: value for name, value in weights.soft_mask.items() if name in own}
        if loaded:
            load_into(predictor.soft_mask, loaded, source=weights.path, what="soft mask")
        say(f"initialised from {weights.path} ({'omegas too' if loaded else 'the omegas start as configured'})")
    else:
        say(f"initialised from {weights.path}" + (" (its omegas are not used)" if weights.soft_mask else ""))


def _start_folder(config: schema.TrainConfig, folder: Path, predictor: Predictor) -> None:
    if config.overwrite and config.ckpt_path is None and folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").unlink(missing_ok=True)
    OmegaConf.save(OmegaConf.create(asdict(config)), folder / "config.yaml")
    write_json(folder / "environment.json", environment())
    rows = [f"{p.numel():>14,}  {tuple(p.shape)!s:<18} {name}" for name, p in predictor.named_parameters()]
    total = sum(p.numel() for p in predictor.parameters())
    (folder / "parameters.txt").write_text("\n".join([*rows, f"{total:>14,}  total"]) + "\n")
    say(f"{config.name}: {total:,} parameters, vocabulary and corpus ready; writing to {folder}")


def _finish(
    config: schema.TrainConfig, built: Built, module: DiffusionModule, datamodule: TokenDataModule
) -> dict[str, Any]:
    trainer, folder = built.trainer, Path(config.output_dir)
    last = folder / "checkpoints" / "last.ckpt"
    trainer.save_checkpoint(last)
    if built.metrics.latest_step != trainer.global_step:
        trainer.validate(module, datamodule=datamodule, verbose=False)
    metrics = dict(built.metrics.latest)
    if isinstance(module.predictor, SoftMaskPredictor):
        module.validation_feedback = False
        trainer.validate(module, datamodule=datamodule, verbose=False)
        metrics |= {f"{name}_without_feedback": value for name, value in built.metrics.latest.items()}
        module.validation_feedback = True
    results = {
        "name": config.name,
        "metrics": metrics,
        "compute": built.meter.summary(),
        "omegas": {k.replace("/", "_"): float(v.detach()) for k, v in module.scalars().items()} or None,
        "seed": config.seed,
        "weights": "ema" if config.callbacks.ema.enabled else "raw",
        "config": asdict(config),
        **environment(),
    }
    if trainer.is_global_zero:
        results |= {"checkpoint": str(last), "checkpoint_sha256": sha256_of(last)}
        write_json(folder / "results.json", results)
        if config.callbacks.plots:
            from sm_diffusion.tools.plots import save_run_plots  # matplotlib is slow to import

            save_run_plots(folder)
        ppl, bits = metrics["val/ppl"], metrics["val/bits_per_byte"]
        say(f"{config.name}: done at step {trainer.global_step:,}: val ppl {ppl:.4f}, {bits:.4f} bits per byte")
        say(f"{config.name}: results in {folder / 'results.json'}, checkpoint {last}")
    return results


def evaluate(config: schema.EvalConfig) -> dict[str, Any]:
    """Load a checkpoint, run the evaluator, write `results.json`."""
    validate_eval(config)
    _quiet_libraries()
    weights = read_weights(config.checkpoint, weights=config.weights)
    run = _run_config(config, weights)
    run.data.eval_batch_sequences = config.batch_sequences
    if isinstance(config.evaluator, schema.PerplexityConfig):
        run.data.max_validation_sequences = config.evaluator.max_sequences or run.data.max_validation_sequences
    datamodule = build_datamodule(run.data, seed=run.seed, world_size=config.devices)
    datamodule.prepare()
    predictor = build_predictor(run, vocab_size=datamodule.vocab_size, mask_id=datamodule.tokenizer.mask_id)
    load_into(predictor.denoiser, weights.denoiser, source=weights.path, what="model and corpus")
    if isinstance(predictor, SoftMaskPredictor):
        own = predictor.soft_mask.state_dict()
        loaded = {name: value for name, value in weights.soft_mask.items() if name in own}
        load_into(predictor.soft_mask, loaded, source=weights.path, what="soft mask")
    module = build_module(run, predictor, validation_sequences=datamodule.meta.splits["validation"].sequences)
    context = EvalContext(
        predictor=predictor,
        measure_nll=_nll_meter(config, module, datamodule),
        bytes_per_token=datamodule.bytes_per_token("validation"),
        seed=config.seed,
    )
    result = build_evaluator(config.evaluator).evaluate(context)
    results = {
        "name": config.evaluator.name,
        "metrics": result.metrics,
        "protocol": result.protocol,
        "checkpoint": str(weights.path),
        "checkpoint_sha256": sha256_of(weights.path),
        "checkpoint_step": weights.step,
        "weights": config.weights,
        "seed": config.seed,
        "config": asdict(config),
        **environment(),
    }
    if rank_zero_only.rank == 0:
        path = Path(config.output_dir) / "results.json"
        write_json(path, results)
        for name, value in result.metrics.items():
            print(f"{name:<34} {value:.6g}")
        say(f"written to {path}")
    return results


def build_evaluator(evaluator: schema.EvaluatorConfig) -> Evaluator:
    match evaluator:
        case schema.PerplexityConfig():
            return PerplexityEvaluator(feedback=evaluator.feedback, repeats=evaluator.repeats)
        case _:
            raise UserError(f"evaluator={evaluator.name}: choose perplexity")


def _run_config(config: schema.EvalConfig, weights: Weights) -> schema.TrainConfig:
    """The training configuration of the checkpoint, with what the evaluation replaces."""
    if weights.provenance is not None:
        run = restore_train_config(weights.provenance)
    else:
        if config.model is None or config.data is None:
            raise UserError(
                f"checkpoint={weights.path}: a published checkpoint does not say its model and corpus; "
                "give model=... and data=..."
            )
        variant = schema.SoftMaskedVariantConfig() if weights.soft_mask else schema.MDLMVariantConfig()
        run = schema.TrainConfig(variant=variant, soft_mask=config.soft_mask)
    run.model = config.model or run.model
    run.data = config.data or run.data
    return run


def _nll_meter(
    config: schema.EvalConfig, module: DiffusionModule, datamodule: TokenDataModule
) -> Callable[[bool, int], float]:
    accelerator = accelerator_of(config.accelerator)
    metrics = ValidationMetrics(bytes_per_token=datamodule.bytes_per_token("validation"))
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=config.devices,
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
        return metrics.latest["val/nll"]

    return measure


# Notices of libraries about what is intended here, or about their own insides.
_NOTICES = (
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*You have overridden `on_before_batch_transfer`.*",
    ".*LeafSpec.*",
    ".*Found keys that are not in the model state dict.*",
)


def _quiet_libraries() -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for notice in _NOTICES:
        warnings.filterwarnings("ignore", message=notice)
