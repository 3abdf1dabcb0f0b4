"""From evaluation settings to the generative and the zero-shot evaluator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric import Fabric

from sm_diffusion.app.build import EVALUATION_SEED
from sm_diffusion.app.console import is_first_rank, say
from sm_diffusion.app.model import Model
from sm_diffusion.config.compose import compose_config
from sm_diffusion.config.nodes import plain
from sm_diffusion.config.root import EvalConfig
from sm_diffusion.config.schema_eval import GenerativeConfig, ZeroShotConfig
from sm_diffusion.data.corpora.base import Document, TextFiles
from sm_diffusion.data.datamodule import TokenDataModule
from sm_diffusion.data.settings import FileCorpusSettings
from sm_diffusion.evaluation.generation.evaluator import GenerativeEvaluator, SampleSet, SamplingPlan, Scorers
from sm_diffusion.evaluation.generation.mauve import FEWEST, MauveScorer, require_mauve, too_few
from sm_diffusion.evaluation.generation.reader import CausalJudge, load_judge
from sm_diffusion.evaluation.generation.samples import GenerationCache, cache_folder
from sm_diffusion.evaluation.zero_shot import PackedText, ZeroShotEvaluator, pack
from sm_diffusion.paths import CONF
from sm_diffusion.training.callbacks.validation import ValidationMetrics
from sm_diffusion.training.module import DiffusionModule
from sm_diffusion.training.strategies.settings import evaluation_strategy
from sm_diffusion.training.trainer_settings import accelerator_of, precision_of
from sm_diffusion.types import UserError


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """An opened model, ready to be evaluated."""

    config: EvalConfig
    model: Model
    module: DiffusionModule
    datamodule: TokenDataModule


# ------------------------------------------------------------------------------------------------------- generative


def build_generative(evaluated: Evaluated, settings: GenerativeConfig) -> GenerativeEvaluator:
    """Judge and MAUVE's model are loaded first: what is missing shows before any sample is made."""
    config, model, datamodule = evaluated.config, evaluated.model, evaluated.datamodule
    length = settings.length or model.length
    if length > model.length:
        raise UserError(f"evaluator.length={length}: the model takes {model.length} tokens; set it to at most that")
    accelerator = accelerator_of(config.accelerator)
    scorers = build_scorers(evaluated, settings, "cuda" if accelerator == "cuda" else "cpu")
    fabric = Fabric(
        accelerator=accelerator,
        devices=config.devices,
        strategy="ddp" if config.devices > 1 else "auto",
        precision=precision_of(config.precision, accelerator),  # type: ignore[arg-type]
    )
    fabric.launch()
    evaluated.module.predictor.to(fabric.device)
    plan = SamplingPlan(
        count=settings.num_samples,
        length=length,
        decode=datamodule.tokenizer.decode,
        batch_sequences=config.batch_sequences,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
        wait=fabric.barrier,
        autocast=fabric.autocast,
    )
    return GenerativeEvaluator(
        sets=list(sample_sets(evaluated, settings, length)),
        plan=plan,
        scorers=scorers,
        frontier_plot=Path(config.output_dir) / "frontier.png",
        protocol=_protocol(evaluated, settings, length),
    )


def sample_sets(evaluated: Evaluated, settings: GenerativeConfig, length: int) -> Iterator[SampleSet]:
    """One for each temperature, each with its cache."""
    config, model = evaluated.config, evaluated.model
    for temperature in settings.temperatures or [config.sampler.temperature]:
        sampler = config.sampler.with_overrides(steps=None, temperature=temperature)
        key: dict[str, Any] = {
            "checkpoint_sha256": model.sha256,
            "weights": model.weights,
            "sampler": plain(sampler, "sampler"),
            "length": length,
            "seed": config.seed,
        }
        if sampler.reuse_unchanged_batch:  # then a text depends on its batch
            key["batch_sequences"] = config.batch_sequences
        if settings.samples_dir is None:
            folder = cache_folder(Path(model.run.data.cache_dir).expanduser() / "generations", key)
        else:
            folder = Path(settings.samples_dir).expanduser()
            folder = folder / f"T{temperature:g}" if len(settings.temperatures) > 1 else folder
        yield SampleSet(temperature, model.sampler(sampler), GenerationCache(folder, key))


def build_scorers(evaluated: Evaluated, settings: GenerativeConfig, device: str) -> Scorers:
    """Loaded on the CPU, by the first rank alone; moved to `device` when the samples are made."""
    if not is_first_rank():
        return Scorers()
    shared: dict[str, Any] = {
        "max_tokens": settings.judge_tokens,
        "batch_sequences": settings.judge_batch_sequences,
    }
    judge = None if settings.judge is None else load_judge(settings.judge, **shared)
    if not settings.mauve:
        return Scorers(judge=_moved(judge, device), say=say)
    require_mauve()
    same = judge is not None and settings.judge == settings.mauve_features
    model = judge if same else load_judge(settings.mauve_features, key="evaluator.mauve_features", **shared)
    assert model is not None
    references = _references(evaluated, settings.mauve_references or settings.num_samples)
    if len(references) < FEWEST:
        raise UserError(too_few(settings.num_samples, len(references)))
    scorer = MauveScorer(
        model=model,
        references=references,
        seeds=settings.mauve_seeds,
        scaling=settings.mauve_scaling,
        cache_dir=Path(evaluated.model.run.data.cache_dir).expanduser(),
    )

    def mauve() -> MauveScorer:
        scorer.model.model.to(device)
        return scorer

    return Scorers(judge=_moved(judge, device), mauve=mauve, say=say)


def _moved(judge: CausalJudge | None, device: str) -> Callable[[], CausalJudge] | None:
    if judge is None:
        return None

    def move() -> CausalJudge:
        judge.model.to(device)
        return judge

    return move


def _references(evaluated: Evaluated, count: int) -> list[str]:
    """The first `count` validation sequences as text."""
    texts: list[str] = []
    for batch in evaluated.datamodule.val_dataloader():
        texts += [evaluated.datamodule.decode(ids) for ids in batch.ids_BL.tolist()]
        if len(texts) >= count:
            return texts[:count]
    say(f"evaluator.mauve_references={count}: the validation split has {len(texts)} sequences, all are used")
    return texts


def _protocol(evaluated: Evaluated, settings: GenerativeConfig, length: int) -> dict[str, Any]:
    return {
        "num_samples": settings.num_samples,
        "length": length,
        "seed": evaluated.config.seed,
        "sampler": plain(evaluated.config.sampler, "sampler"),
        "judge": settings.judge,
        "judge_tokens": settings.judge_tokens,
        "entropy": "unigram, nats, per sample over the model's token ids, averaged",
        "ppl": "text re-tokenised by the judge; tokens up to and including the first end of text count",
    }


# -------------------------------------------------------------------------------------------------------- zero-shot


def build_zero_shot(evaluated: Evaluated, settings: ZeroShotConfig) -> ZeroShotEvaluator:
    tokenizer, length = evaluated.model.tokenizer, evaluated.model.length
    sources = {}
    for name in settings.sources:
        documents, add_eos = source_documents(name)
        sources[_label(name)] = pack(documents, tokenizer, length=length, name=name, add_eos=add_eos)
    if len(sources) < len(settings.sources):
        raise UserError(f"evaluator.sources={settings.sources}: two of them have the same name; rename a file")
    return ZeroShotEvaluator(
        sources=sources, feedback=settings.feedback, measure=_source_meter(evaluated, settings.max_sequences)
    )


def source_documents(name: str) -> tuple[Iterator[Document], bool]:
    """The validation documents of a data option, or all documents of text files; and whether EOS goes between them."""
    options = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
    if name in options:
        data = compose_config("eval", ["checkpoint=none", f"data={name}"]).data
        return data.source().validation(), not isinstance(data, FileCorpusSettings) or data.add_eos
    try:
        files = TextFiles(
            paths=[name], text_field="text", split_blank_lines=False, validation_fraction=0.5, validation_paths=None
        )
    except UserError:
        raise UserError(
            f"evaluator.sources={name}: neither a data option ({', '.join(options)}) nor a text file, folder or glob"
        ) from None
    return _everything(files), True


def _everything(files: TextFiles) -> Iterator[Document]:
    yield from files.train()
    yield from files.validation()


def _label(name: str) -> str:
    """What a source is called in the results: a file without its folders and ending, a glob as it is."""
    return name if set("*?[") & set(name) else Path(name).stem


def _source_meter(evaluated: Evaluated, max_sequences: int | None) -> Callable[[PackedText, bool, int], float]:
    config, module = evaluated.config, evaluated.module
    accelerator = accelerator_of(config.accelerator)
    metrics = ValidationMetrics(bytes_per_token=1.0)
    trainer = L.Trainer(
        accelerator=accelerator,
        devices=1,
        strategy=evaluation_strategy(accelerator, devices=1),
        precision=precision_of(config.precision, accelerator),  # type: ignore[arg-type]
        callbacks=[metrics],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )

    def measure(text: PackedText, feedback: bool, seed: int) -> float:
        module.validation_feedback = feedback
        module.noise = replace(
            module.noise,
            evaluation_seed=EVALUATION_SEED - 1 + seed,
            validation_sequences=len(text.rows_NL),
            row_width=None,  # the texts are all of one length
        )
        trainer.validate(module, dataloaders=text.loader(config.batch_sequences, max_sequences), verbose=False)
        return metrics.latest["val/nll" if feedback else "val/nll_without_feedback"]

    return measure
