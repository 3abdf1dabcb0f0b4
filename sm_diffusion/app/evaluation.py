"""What an evaluator is given: an opened checkpoint, its corpus and a trainer, each made when it is first asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy

from sm_diffusion.app.build import EVALUATION_SEED, build_module
from sm_diffusion.app.console import is_first_rank, say
from sm_diffusion.app.model import Model, named_sampler
from sm_diffusion.app.open_model import Given, open_model
from sm_diffusion.config.compose import compose_config
from sm_diffusion.config.nodes import plain
from sm_diffusion.config.root import EvalConfig, TrainConfig
from sm_diffusion.data.chat.datamodule import ChatDataModule
from sm_diffusion.data.chat.settings import ChatSettings
from sm_diffusion.data.corpora.base import Document
from sm_diffusion.data.datamodule import TokenDataModule
from sm_diffusion.data.settings import DataSettings, FileCorpusSettings
from sm_diffusion.diffusion.sft import SFTSettings
from sm_diffusion.evaluation.base import EvalContext, Processes
from sm_diffusion.paths import CONF
from sm_diffusion.sampling.settings import SamplerSettings
from sm_diffusion.training.callbacks.validation import ValidationMetrics
from sm_diffusion.training.module import DiffusionModule
from sm_diffusion.training.strategies.settings import evaluation_strategy
from sm_diffusion.training.trainer_settings import accelerator_of, precision_of
from sm_diffusion.types import Batch, UserError


class Evaluation(EvalContext):
    """The context of eval.py. See `EvalContext` for its parts."""

    def __init__(self, config: EvalConfig) -> None:
        self.config = config
        self.seed = config.seed
        self.checkpoint = config.checkpoint
        self.sampler = config.sampler
        self.batch_sequences = config.batch_sequences
        self.output_dir = Path(config.output_dir).expanduser()
        self._accelerator = accelerator_of(config.accelerator)
        self._precision = precision_of(config.precision, self._accelerator)

    @cached_property
    def model(self) -> Model:
        return open_model(self.config.checkpoint, Given.of(self.config))

    @property
    def device_type(self) -> str:
        return "cuda" if self._accelerator == "cuda" else "cpu"

    @property
    def first_rank(self) -> bool:
        return is_first_rank()

    @property
    def cache_dir(self) -> Path:
        return Path(self.model.run.data.cache_dir).expanduser()

    @cached_property
    def processes(self) -> Processes:
        # One rank may finish long before another: no time limit on waiting for it.
        ddp = DDPStrategy(timeout=timedelta(days=30)) if self.config.devices > 1 else "auto"
        fabric = Fabric(
            accelerator=self._accelerator,
            devices=self.config.devices,
            strategy=ddp,
            precision=self._precision,  # type: ignore[arg-type]
        )
        fabric.launch()
        self.model.predictor.to(fabric.device)
        return Processes(
            rank=fabric.global_rank,
            world_size=fabric.world_size,
            wait=fabric.barrier,
            precision=self._precision,
            autocast=fabric.autocast,
        )

    @cached_property
    def _run(self) -> TrainConfig:
        """The settings of the training, by which a number does not depend on batches.

        As published, a batch of fine-tuning shares one time, and its padding counts as text: both would make the value
        depend on the batch. Here every row has its own time, and only the conversation counts.
        """
        run = self.model.run
        changes: dict[str, Any] = {"eval_batch_sequences": self.batch_sequences}
        if isinstance(run.objective, SFTSettings):
            run = replace(run, objective=replace(run.objective, times="uniform"))
            if isinstance(run.data, ChatSettings):
                changes["pads_are_maskable"] = False
        return replace(run, data=replace(run.data, **changes))

    def validation(self, max_sequences: int | None = None) -> CorpusText:
        data = self._run.data
        if max_sequences is not None:
            data = replace(data, max_validation_sequences=max_sequences)
        datamodule = self.datamodule(data)
        meter = self._meter(datamodule.meta.splits["validation"].sequences, self.config.devices)
        return CorpusText(datamodule, meter, is_bound=not isinstance(self._run.objective, SFTSettings))

    def datamodule(self, data: DataSettings) -> TokenDataModule | ChatDataModule:
        """The corpus, encoded by the model's own tokenizer. UserError where it is by another one."""
        model = self.model
        if type(data) is DataSettings:
            raise UserError(f"checkpoint={self.checkpoint}: a folder does not say its corpus; give data=...")
        datamodule = data.datamodule(seed=model.run.seed, world_size=self.config.devices)
        datamodule.prepare()
        theirs, own = datamodule.tokenizer, model.tokenizer
        text = isinstance(datamodule, TokenDataModule)
        other = datamodule.tokenizer.fingerprint() != own.fingerprint() if text else False
        if other or (theirs.vocab_size, theirs.mask_id) != (own.vocab_size, own.mask_id):
            raise UserError(
                f"data={data.name}: its tokenizer ({data.tokenizer.kind}, {theirs.vocab_size} ids) is not that of "
                f"{self.checkpoint} ({own.vocab_size} ids): set data.tokenizer to the one it was trained with"
            )
        return datamodule

    def nll(self, batches: Sequence[Batch], *, num_rows: int, feedback: bool, seed: int) -> float:
        noise: dict[str, Any] = {"validation_sequences": num_rows, "row_width": None}  # rows are all of one length
        return self._text_meter.measure(feedback, seed, BatchLoader(batches), **noise)

    @cached_property
    def _text_meter(self) -> Meter:
        return self._meter(0, 1)

    def _meter(self, num_rows: int, devices: int) -> Meter:
        module = build_module(self._run, self.model.predictor, validation_sequences=num_rows)
        return Meter(module, accelerator=self._accelerator, precision=self._precision, devices=devices)

    def data_options(self) -> list[str]:
        return sorted(path.stem for path in (CONF / "data").glob("*.yaml"))

    def documents(self, name: str) -> tuple[Iterator[Document], bool]:
        data = compose_config("eval", ["checkpoint=none", f"data={name}"]).data
        return data.source().validation(), not isinstance(data, FileCorpusSettings) or data.add_eos

    def named_sampler(self, name: str) -> SamplerSettings:
        return named_sampler(name)

    def values_of(self, sampler: SamplerSettings) -> dict[str, Any]:
        return plain(sampler, "sampler")

    def say(self, text: str) -> None:
        say(text)


class BatchLoader:
    """Batches as a loader; Lightning takes a plain list for several loaders."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class Meter:
    """Mean NLL of batches, by the training's own validation step."""

    def __init__(self, module: DiffusionModule, *, accelerator: str, precision: str, devices: int) -> None:
        self.module = module
        self.metrics = ValidationMetrics(bytes_per_token=1.0)  # only its NLL is read
        self.trainer = L.Trainer(
            accelerator=accelerator,
            devices=devices,
            strategy=evaluation_strategy(accelerator, devices=devices),
            precision=precision,  # type: ignore[arg-type]
            callbacks=[self.metrics],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )

    def measure(self, feedback: bool, seed: int, batches: Any, **noise: Any) -> float:
        """Token-weighted mean, nats. batches: a loader or a datamodule. noise: other fields of `NoiseSettings`."""
        self.module.validation_feedback = feedback
        self.module.noise = replace(self.module.noise, evaluation_seed=EVALUATION_SEED - 1 + seed, **noise)
        given = {"datamodule" if isinstance(batches, L.LightningDataModule) else "dataloaders": batches}
        self.trainer.validate(self.module, **given, verbose=False)
        return self.metrics.latest["val/nll" if feedback else "val/nll_without_feedback"]


class CorpusText:
    """The validation split of a prepared corpus; a `ValidationText`."""

    def __init__(self, datamodule: TokenDataModule | ChatDataModule, meter: Meter, *, is_bound: bool) -> None:
        self.datamodule = datamodule
        self.is_bound = is_bound
        self._meter = meter

    @property
    def bytes_per_token(self) -> float:
        return self.datamodule.bytes_per_token("validation")

    def nll(self, feedback: bool, seed: int) -> float:
        return self._meter.measure(feedback, seed, self.datamodule)

    def rows(self) -> Iterator[list[int]]:
        for batch in self.datamodule.val_dataloader():
            yield from batch.ids_BL.tolist()
