"""What train.py and eval.py run, from a typed configuration to files on disk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import OmegaConf

from sm_diffusion.app.build import build_module, build_predictor
from sm_diffusion.app.console import is_first_rank, quiet_libraries, say
from sm_diffusion.app.model_card import card_of_run, write_card
from sm_diffusion.app.open_model import CHECKPOINT, copy_weights, locate
from sm_diffusion.app.publish import publish
from sm_diffusion.app.trainer import Built, build_trainer
from sm_diffusion.app.validate import validate_train, validate_vocabulary
from sm_diffusion.config.nodes import plain
from sm_diffusion.config.root import TrainConfig
from sm_diffusion.data.chat.datamodule import ChatDataModule
from sm_diffusion.data.datamodule import TokenDataModule
from sm_diffusion.denoisers.checkpoints.reader import Archive
from sm_diffusion.denoisers.checkpoints.weights import PROVENANCE_KEY, check_fits, read_weights
from sm_diffusion.diffusion.predictor import Predictor, SoftMaskPredictor
from sm_diffusion.evaluation.results import environment
from sm_diffusion.files import read_json, sha256_of, write_json, write_text
from sm_diffusion.training import loggers
from sm_diffusion.training.callbacks.begin import BeginRun
from sm_diffusion.training.checkpoints import store as ckpt_store
from sm_diffusion.training.checkpoints.adapter_folder import write_adapter_folder
from sm_diffusion.training.compiling import compile_blocks
from sm_diffusion.training.module import DiffusionModule
from sm_diffusion.training.run_folder import RunFolder
from sm_diffusion.types import UserError


def train(config: TrainConfig, *, draw: Callable[[Path], object] | None = None) -> dict[str, Any]:
    """Train, validate, and write the run folder; returns what `results.json` holds.

    draw: makes figures from the run folder, once its results are written, where `callbacks.plots` wants them.
    """
    validate_train(config)
    config.peft.check_packages()
    quiet_libraries()
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    folder = RunFolder(config.output_dir)
    if not is_first_rank():
        return _train(config, folder, draw)
    _check_folder(config, folder)
    with folder.claimed():
        _check_folder(config, folder)  # again: the process that had it may have changed it
        return _train(config, folder, draw)


def _check_folder(config: TrainConfig, folder: RunFolder) -> None:
    """UserError where a run must not start or go on; nothing is touched."""
    continues = config.ckpt_path is not None
    overwrite = config.overwrite and not continues
    key = f"output_dir={config.output_dir}"
    if problem := folder.problem(key=key, overwrite=overwrite, continues=continues):
        raise UserError(problem)


def _train(config: TrainConfig, folder: RunFolder, draw: Callable[[Path], object] | None) -> dict[str, Any]:
    world_size = config.trainer.devices * config.trainer.num_nodes
    datamodule = config.data.datamodule(seed=config.seed, world_size=world_size)
    datamodule.prepare()
    validate_vocabulary(config, datamodule.vocab_size)

    L.seed_everything(config.seed, verbose=False)
    predictor = build_predictor(
        config, vocab_size=datamodule.vocab_size, mask_id=datamodule.tokenizer.mask_id
    )
    if config.init_from is not None:
        initialise(predictor, config.init_from, weights=config.init_weights)
    if config.trainer.compile:
        count = compile_blocks(predictor, backend=config.trainer.compile_backend)
        say(f"{config.name}: {count} blocks are compiled by the first step, which takes its time")
    module = build_module(
        config, predictor, validation_sequences=datamodule.meta.splits["validation"].sequences
    )
    module.provenance["tokenizer"] = datamodule.tokenizer.files()  # so that the checkpoint is enough to use it
    ckpt_path = _checkpoint_to_continue(config, module)
    begin = BeginRun(lambda: _start_folder(config, folder, predictor))
    if ckpt_path is None:
        begin.now(first=is_first_rank())
    run_id = ""
    if is_first_rank():
        folder.forget_beats()
        run_id = folder.run_id(name=config.name, continues=ckpt_path is not None)
    built = build_trainer(
        config, bytes_per_token=datamodule.bytes_per_token("validation"), run_id=run_id, begin=begin
    )
    try:
        built.trainer.fit(module, datamodule=datamodule, ckpt_path=ckpt_path, weights_only=True)
        begin.now(first=built.trainer.is_global_zero)  # where there was nothing left to train
        results = _finish(config, built, module, datamodule, draw)
    except BaseException as error:
        loggers.close(run_id, failed=True)
        instead = built.watchers.watchdog.close(error)
        if instead is None:
            raise
        raise instead from None
    loggers.close(run_id, failed=False)
    built.watchers.watchdog.close()
    return results


def _checkpoint_to_continue(config: TrainConfig, module: DiffusionModule) -> str | None:
    """The checkpoint this run goes on from, cleaned up, verified and found to fit by the first process."""
    own = RunFolder(config.output_dir)
    path = Path(config.ckpt_path) if config.ckpt_path not in (None, "last", "auto") else own.last
    if is_first_rank():
        for line in ckpt_store.recover(own.checkpoints):
            say(line)
    if config.ckpt_path is None or (config.ckpt_path == "auto" and not ckpt_store.exists(path)):
        return None
    if is_first_rank():
        if config.callbacks.checkpoint.verify:
            ckpt_store.verify(path)
        if not path.is_dir():  # shards are compared when they are read
            check_fits(module, path)
            _check_goes_on(config, path)
    return str(path)


def _check_goes_on(config: TrainConfig, path: Path) -> None:
    """UserError for a checkpoint that this configuration cannot go on from, before anything is touched."""
    tree = Archive(path).tree()
    step = tree.get("global_step")
    if isinstance(step, int) and step > config.trainer.max_steps:
        raise UserError(
            f"trainer.max_steps={config.trainer.max_steps}: the checkpoint {path} is at step {step:,} already; set "
            "trainer.max_steps beyond it, or leave out ckpt_path and give the run another name"
        )
    then = tree.get(PROVENANCE_KEY, {}).get("config", {}).get("data", {}).get("global_batch_sequences")
    now = config.data.global_batch_sequences
    if isinstance(then, int) and then != now:
        raise UserError(
            f"data.global_batch_sequences={now}: the run was begun with {then}, which decides what every step reads; "
            f"set it back to {then} (data.micro_batch_sequences may change), or start a new run with init_from={path}"
        )


def initialise(predictor: Predictor, path: str, *, weights: str) -> None:
    """Start from a checkpoint or run folder: MDLM -> SM keeps the configured omegas, SM -> SM takes those found."""
    place = locate(path)
    if place.kind != CHECKPOINT:
        raise UserError(
            f"init_from={path}: an {place.kind} is no checkpoint: merge it (smd convert merge) and set model.path to it"
        )
    found = read_weights(place.path, weights=weights)
    omegas = copy_weights(predictor, found, what="model")
    if isinstance(predictor, SoftMaskPredictor):
        say(f"initialised from {place.path} ({'omegas too' if omegas else 'the omegas start as configured'})")
    else:
        say(f"initialised from {place.path}" + (" (its omegas are not used)" if found.soft_mask else ""))


def chat_kind(datamodule: TokenDataModule | ChatDataModule) -> str | None:
    """How the conversations of a datamodule become ids; None: it holds plain text."""
    return datamodule.tokenizer.kind if isinstance(datamodule, ChatDataModule) else None


def _start_hash(config: TrainConfig, run: RunFolder) -> str | None:
    """Of the checkpoint this run began with: a run that goes on keeps the one it noted."""
    noted = run.environment
    if config.ckpt_path is not None and noted.is_file():
        found = read_json(noted).get("init_sha256")
        return found if isinstance(found, str) else None
    if config.init_from is None or not Path(config.init_from).is_file():
        return None
    return sha256_of(Path(config.init_from))


def _start_folder(config: TrainConfig, run: RunFolder, predictor: Predictor) -> None:
    folder = run.path
    if config.overwrite and config.ckpt_path is None and folder.exists() and (left := run.clear()):
        say(f"{config.name}: overwrites the run in {folder}; left there: {', '.join(left[:6])}")
    folder.mkdir(parents=True, exist_ok=True)
    made_from = _start_hash(config, run)
    write_text(run.config, OmegaConf.to_yaml(OmegaConf.create(plain(config))))
    run.results.unlink(missing_ok=True)
    write_json(run.environment, environment() | {"init_sha256": made_from})
    rows = [f"{p.numel():>14,}  {tuple(p.shape)!s:<18} {name}" for name, p in predictor.named_parameters()]
    total = sum(p.numel() for p in predictor.parameters())
    write_text(run.parameters, "\n".join([*rows, f"{total:>14,}  total"]) + "\n")
    say(f"{config.name}: {total:,} parameters, vocabulary and corpus ready; writing to {folder}")


def _finish(
    config: TrainConfig,
    built: Built,
    module: DiffusionModule,
    datamodule: TokenDataModule | ChatDataModule,
    draw: Callable[[Path], object] | None,
) -> dict[str, Any]:
    trainer, run = built.trainer, RunFolder(config.output_dir)
    omegas = built.watchers.final.complete(trainer, module)
    if built.watchers.metrics.latest_step != trainer.global_step:
        trainer.validate(module, datamodule=datamodule, verbose=False)
    if isinstance(module.predictor, SoftMaskPredictor):
        module.validation_feedback = False
        trainer.validate(module, datamodule=datamodule, verbose=False)
        module.validation_feedback = True
    metrics = built.watchers.metrics.latest
    results = {
        "name": config.name,
        "metrics": metrics,
        "compute": built.watchers.budget.summary(),
        "omegas": {k.replace("/", "_"): v for k, v in omegas.items()} or None,
        "seed": config.seed,
        "weights": "ema" if config.callbacks.ema.enabled else "raw",
        "config": plain(config),
        **environment(),
    }
    adapter = write_adapter_folder(module.predictor, run.adapter, writes=trainer.is_global_zero)
    if trainer.is_global_zero:
        hashed = run.last / ckpt_store.CHECKSUMS if run.last.is_dir() else run.last
        results |= {"checkpoint": str(run.last), "checkpoint_sha256": sha256_of(hashed) if hashed.exists() else None}
        write_json(run.results, results)
        publish(trainer.loggers, results)
        if adapter is not None:
            card = card_of_run(config, chat=chat_kind(datamodule))
            write_card(adapter, card, datamodule.tokenizer.files())
            say(f"{config.name}: adapter and omegas in {adapter}")
        if config.callbacks.plots and draw is not None:
            draw(run.path)
        ppl, bits = metrics["val/ppl"], metrics["val/bits_per_byte"]
        say(f"{config.name}: done at step {trainer.global_step:,}: val ppl {ppl:.4f}, {bits:.4f} bits per byte")
        say(f"{config.name}: results in {run.results}, checkpoint {run.last}")
    return results
