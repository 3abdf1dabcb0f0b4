"""What an evaluator is, what it is built from, and what it returns.

An evaluator is chosen by name; its settings are registered where it is written, and build it:

    @register("evaluator", "mine")
    @dataclass
    class MySettings:
        threshold: float = 0.5

        def problems(self) -> Iterator[str]: ...                    # optional, see `registry`
        def problems_in_evaluation(self, sampler, devices): ...      # optional, see `CheckedInEvaluation`
        def build(self, context: EvalContext) -> Evaluator: ...
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sm_diffusion.data.chat.format import ChatFormat
from sm_diffusion.data.corpora.base import Document
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.sampling.loop import Sampler
from sm_diffusion.sampling.settings import SamplerSettings
from sm_diffusion.types import Batch


class EvaluatedModel(Protocol):
    """A trained model. chat: None where it was trained on plain text.

    length:    tokens of the longest text it was trained on.     positions: tokens that fit at all.
    source, weights, sha256: what is recorded of it.
    """

    @property
    def predictor(self) -> Predictor: ...
    @property
    def tokenizer(self) -> TextTokenizer: ...
    @property
    def chat(self) -> ChatFormat | None: ...
    @property
    def length(self) -> int: ...
    @property
    def positions(self) -> int: ...
    @property
    def source(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def sha256(self) -> str: ...

    def sampler(self, settings: SamplerSettings, predictor: Predictor | None = None) -> Sampler:
        """The sampling loop. predictor: the same network read in another way; None: the model's."""


class ValidationText(Protocol):
    """The validation split of a corpus, encoded by the model's own tokenizer."""

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of the text for each token."""

    @property
    def is_bound(self) -> bool:
        """Whether `nll` bounds the likelihood. The objective of fine-tuning does not: no perplexity comes of it."""

    def nll(self, feedback: bool, seed: int) -> float:
        """Token-weighted mean NLL in nats, over all processes; it does not depend on the batches.

        feedback: with the two passes of a soft-masked model.     seed: of the noise; 1 is what training validates with.
        """

    def rows(self) -> Iterator[list[int]]:
        """Ids of every sequence."""


@dataclass(frozen=True, kw_only=True)
class Processes:
    """The processes of the evaluation, once they are started; the network is on this one's device by then.

    rank, world_size: of this process.     wait: returns once every process has called it, however long that takes.
    precision:        as Lightning spells it.     autocast: a forward pass in that precision.
    """

    rank: int
    world_size: int
    wait: Callable[[], object]
    precision: str
    autocast: Callable[[], AbstractContextManager[Any]]


class EvalContext(ABC):
    """What an evaluator is built from and works with. Each part is made when it is first asked for: an evaluator that
    reads no corpus needs none, and what it can refuse by itself it refuses before the model is opened.

    seed:            of every random choice of the evaluation.
    checkpoint:      as the user named it.
    sampler:         settings, for evaluators that generate.
    batch_sequences: of a forward pass; changes no number.
    output_dir:      folder of results.json.
    """

    seed: int
    checkpoint: str
    sampler: SamplerSettings
    batch_sequences: int
    output_dir: Path

    @property
    @abstractmethod
    def model(self) -> EvaluatedModel:
        """The checkpoint, opened."""

    @property
    @abstractmethod
    def device_type(self) -> str:
        """cpu or cuda: where forward passes run."""

    @property
    @abstractmethod
    def processes(self) -> Processes:
        """Starts the processes, for evaluators that share work out by themselves."""

    @property
    @abstractmethod
    def first_rank(self) -> bool:
        """Whether this is the process that judges and writes; known before the processes are started."""

    @property
    @abstractmethod
    def cache_dir(self) -> Path:
        """Where prepared corpora and samples are kept."""

    @abstractmethod
    def validation(self, max_sequences: int | None = None) -> ValidationText:
        """The corpus of the model's training, or the one given as `data`. max_sequences: evenly spread; None: all."""

    @abstractmethod
    def nll(self, batches: Sequence[Batch], *, num_rows: int, feedback: bool, seed: int) -> float:
        """As `ValidationText.nll`, of given batches in one process. Their rows_B are rows of `num_rows` in all."""

    @abstractmethod
    def data_options(self) -> Sequence[str]:
        """Names of the corpora that `documents` knows."""

    @abstractmethod
    def documents(self, name: str) -> tuple[Iterator[Document], bool]:
        """The validation documents of a corpus, and whether EOS goes between them."""

    @abstractmethod
    def named_sampler(self, name: str) -> SamplerSettings:
        """The settings of sampler=<name>, as published."""

    @abstractmethod
    def values_of(self, sampler: SamplerSettings) -> dict[str, Any]:
        """A sampler's settings as plain values, for records."""

    @abstractmethod
    def say(self, text: str) -> None:
        """A line for the person who started the evaluation, once for all processes."""


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """metrics: flat name -> number. protocol: the settings another person needs to get the same numbers.
    scores: rows of a table, each with a protocol of its own; empty for evaluators without one.
    """

    metrics: dict[str, float]
    protocol: dict[str, Any] = field(default_factory=dict)
    scores: list[dict[str, Any]] = field(default_factory=list)


class Evaluator(ABC):
    """One kind of score."""

    @abstractmethod
    def evaluate(self, context: EvalContext) -> EvalResult:
        """Metrics; processes but the first may return none."""


class EvaluatorSettings(Protocol):
    """What is registered in the group `evaluator`: a dataclass that builds its evaluator."""

    def build(self, context: EvalContext) -> Evaluator:
        """Raises UserError for what cannot be evaluated."""


@runtime_checkable
class CheckedInEvaluation(Protocol):
    """Settings that do not fit every sampler, or every number of devices."""

    def problems_in_evaluation(self, sampler: SamplerSettings, devices: int) -> Iterator[str]:
        """What is wrong, a line each: "key=value: what is wrong; what to set instead"."""


def not_positive(settings: Any, *keys: str) -> Iterator[str]:
    """A problem for each of an evaluator's settings that is given and not above zero."""
    for key in keys:
        value = vars(settings)[key]
        if value is not None and not value > 0:
            yield f"evaluator.{key}={value}: must be positive"
