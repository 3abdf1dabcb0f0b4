"""What the harness needs of a trained model. It is handed one: opening models is not its business."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from sm_diffusion.data.chat.format import ChatFormat
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.diffusion.schedule import NoiseSchedule
from sm_diffusion.sampling import Canvas, Sampler, SamplerOutput


class OpenedModel(Protocol):
    """length: tokens of the longest text. told_schedule: where the network is told its noise level.

    source, weights, step, variant, sha256: what is recorded of it.
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
    def told_schedule(self) -> NoiseSchedule | None: ...
    @property
    def source(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def step(self) -> int | None: ...
    @property
    def variant(self) -> str: ...
    @property
    def sha256(self) -> str: ...

    def with_batch(self, batch_sequences: int) -> OpenedModel:
        """The same model with so many rows a forward pass."""

    def answer_sampler(
        self,
        name: str,
        *,
        new_tokens: int,
        nfe: float,
        steps: int | None,
        temperature: float | None,
        top_p: float | None,
    ) -> Sampler:
        """The named sampler for an answer of `new_tokens`."""

    def run_sampler(
        self, rows: Sequence[Sequence[int]], sampler: Sampler, *, seeds: Sequence[int]
    ) -> Iterator[tuple[Canvas, SamplerOutput]]:
        """Fill the masks of the rows; row i draws from `seeds[i]`."""


OpenModel = Callable[[str, str, str], OpenedModel]
"""(path or name, "ema" or "raw", device) -> the model."""
