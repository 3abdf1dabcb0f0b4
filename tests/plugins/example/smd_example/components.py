"""One component of every kind that a plug-in can add, each as small as it can be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sm_diffusion.data.corpora.base import Document, TokenSource
from sm_diffusion.data.settings import DataSettings, TokenizerSettings
from sm_diffusion.diffusion import mixing as mixings
from sm_diffusion.diffusion.contracts import Denoiser, DenoiserInput, Head, Mixing, Readout
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.diffusion.readouts.base import Summarize
from sm_diffusion.diffusion.schedule import NoiseSchedule
from sm_diffusion.diffusion.soft_mask import SoftMaskBase, SoftMaskSettings
from sm_diffusion.evaluation.base import EvalContext, EvalResult, Evaluator
from sm_diffusion.registry import choice, refuse, register
from sm_diffusion.sampling.noise import StepNoise
from sm_diffusion.sampling.orders.base import Proposal, State, UnmaskPolicy, masked_share, top_n
from sm_diffusion.training.callbacks.settings import RunContext
from sm_diffusion.types import DenseMixture, Memory, TokenMixture

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback
    from lightning.pytorch.loggers import Logger


@register("schedule", "squared")
@dataclass(frozen=True, kw_only=True)
class Squared(NoiseSchedule):
    """alpha = 1 - (1 - eps) t^2."""

    eps: float = 0.01  # what stays clean at t = 1

    def __post_init__(self) -> None:
        refuse(self)

    def problems(self) -> Iterator[str]:
        if not 0 < self.eps < 1:
            yield f"schedule.eps={self.eps}: must lie in (0, 1)"

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - (1 - self.eps) * t**2

    def dalpha(self, t: Tensor) -> Tensor:
        return -2 * (1 - self.eps) * t

    def mask_probability(self, t: Tensor) -> Tensor:
        return (1 - self.eps) * t**2


@register("mixing", "half")
def half(weight_VD: Tensor, mixture: TokenMixture | DenseMixture) -> Tensor:
    """Half of the linear blend and half of the spherical one."""
    return (mixings.linear(weight_VD, mixture) + mixings.slerp(weight_VD, mixture)) / 2


class FixedMask(SoftMaskBase):
    """lambda does not depend on the entropy: omega_s at every masked position."""

    def confidence(self, neg_entropy: Tensor, strength: float | Tensor) -> Tensor:
        return (self.omega_s * strength).expand_as(neg_entropy)

    def remember_at(self, positions_N: Tensor) -> Readout:
        return Summarize(positions_N, top_k=1)

    def forward(self, ids_BL: Tensor, memory: Memory, mask_id: int, strength: float | Tensor = 1.0) -> TokenMixture:
        soft_BL = (ids_BL == mask_id) & (memory.probs_BLK[..., 0] > 0)
        lambda_BL = torch.where(soft_BL, self.confidence(memory.neg_entropy_BL, strength), 0.0)
        ids_BLK = torch.where(soft_BL[..., None], memory.ids_BLK, 0)
        return TokenMixture(
            torch.cat([ids_BL[..., None], ids_BLK], -1), torch.stack([1 - lambda_BL, lambda_BL], -1)
        )


@register("soft_mask", "fixed")
@dataclass(frozen=True, kw_only=True)
class FixedMaskSettings(SoftMaskSettings):
    """The same lambda everywhere."""

    share: float = 0.3  # lambda, in (0, 1)
    mixing: str = choice("mixing", "half")

    def problems(self) -> Iterator[str]:
        if not 0 < self.share < 1:
            yield f"soft_mask.share={self.share}: must lie in (0, 1)"

    def problems_with_vocabulary(self, vocab_size: int) -> Iterator[str]:
        return iter(())

    def build(self) -> SoftMaskBase:
        return FixedMask(omega_s=self.share, omega_a=1.0, omega_b=-1.0)


class BagOfWords(Denoiser):
    """Every position sees the mean of the row: no attention, no positions."""

    def __init__(self, *, vocab_size: int, width: int, mask_id: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList([nn.Linear(2 * width, width)])
        self.output = nn.Linear(width, vocab_size)
        self.parameterization = Subs(mask_id)

    def forward(
        self,
        inputs: DenoiserInput,
        readout: Readout,
        *,
        mixing: Mixing,
        sigma_B: Tensor | None = None,
        attention_mask_BL: Tensor | None = None,
    ) -> Any:
        weight_VD = self.embedding.weight
        x_BLD = self.embedding(inputs) if isinstance(inputs, Tensor) else mixing(weight_VD, inputs)
        hidden_BLD = self.blocks[0](torch.cat([x_BLD, x_BLD.mean(1, keepdim=True).expand_as(x_BLD)], -1)).tanh()
        return readout(hidden_BLD, Head(self.output.weight, self.output.bias, self.parameterization))

    def input_embedding(self) -> nn.Module:
        return self.embedding

    def shard_units(self) -> Sequence[nn.Module]:
        return list(self.blocks)

    def flops_per_token(self, length: int) -> tuple[int, int]:
        width = self.embedding.embedding_dim
        return 4 * width * width, 2 * width * self.embedding.num_embeddings


@register("model", "bag_of_words")
@dataclass
class BagOfWordsSettings:
    """A network without attention."""

    width: int = 16

    def problems(self) -> Iterator[str]:
        if self.width < 1:
            yield f"model.width={self.width}: must be positive"

    def build(self, *, vocab_size: int, mask_id: int) -> Denoiser:
        return BagOfWords(vocab_size=vocab_size, width=self.width, mask_id=mask_id)


class Counting(TokenSource):
    """Sentences that count."""

    def __init__(self, documents: int) -> None:
        self.documents = documents

    def _from(self, start: int) -> Iterator[Document]:
        words = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
        for index in range(start, start + self.documents):
            yield Document(" ".join(words[(index + k) % 10] for k in range(60)), f"count {index}")

    def train(self) -> Iterator[Document]:
        return self._from(0)

    def validation(self) -> Iterator[Document]:
        return self._from(self.documents)

    def fingerprint(self) -> str:
        return f"counting-{self.documents}"


@register("data", "counting")
@dataclass
class CountingSettings(DataSettings):
    """Sentences that count."""

    name: str = "counting"
    tokenizer: TokenizerSettings = field(default_factory=lambda: TokenizerSettings(kind="char"))
    length: int = 16
    global_batch_sequences: int = 8
    documents: int = 12

    def source(self) -> TokenSource:
        return Counting(self.documents)


@register("sampler", "right_to_left")
@dataclass(frozen=True, kw_only=True)
class RightToLeft(UnmaskPolicy):
    """The last masked positions first."""

    tokens: int = 1  # of a step

    def __post_init__(self) -> None:
        refuse(self)

    def problems(self) -> Iterator[str]:
        if self.tokens < 1:
            yield f"sampler.tokens={self.tokens}: must be >= 1"

    def max_steps(self, open_BL: Tensor) -> int:
        return -(-int(open_BL.sum(1).max()) // self.tokens)

    def propose(self, state: State, noise: StepNoise) -> Proposal:
        place_BL = torch.arange(state.ids_BL.shape[1], dtype=torch.float64).expand(state.ids_BL.shape)
        count_B = torch.full_like(state.ids_BL[:, 0], self.tokens)
        return Proposal(masked_share(state), top_n(place_BL, state.masked_BL, count_B))

    @property
    def remasks(self) -> bool:
        return False

    @property
    def end_time(self) -> float:
        return 0.0


@register("callback", "count_steps")
@dataclass(frozen=True, kw_only=True)
class CountStepsSettings:
    """Writes steps.txt into the run's folder."""

    word: str = "steps"

    def build(self, run: RunContext) -> Callback:
        from smd_example.lightning_parts import CountSteps

        return CountSteps(run, self.word)


@register("log", "json_lines")
@dataclass(frozen=True, kw_only=True)
class JsonLinesSettings:
    """Writes numbers.jsonl into the run's folder."""

    def build(self, run: RunContext) -> Logger:
        from smd_example.lightning_parts import JsonLines

        return JsonLines(run)


@dataclass(frozen=True)
class MaskedLoss(Evaluator):
    """NLL of the validation split times a factor, and how many parameters the network has."""

    factor: float

    def evaluate(self, context: EvalContext) -> EvalResult:
        nll = context.validation().nll(False, context.seed)
        count = sum(parameter.numel() for parameter in context.model.predictor.parameters())
        return EvalResult(metrics={"scaled_nll": self.factor * nll, "parameters": float(count)})


@register("evaluator", "masked_loss")
@dataclass
class MaskedLossSettings:
    factor: float = 2.0

    def problems(self) -> Iterator[str]:
        if self.factor <= 0:
            yield f"evaluator.factor={self.factor}: must be positive"

    def build(self, context: EvalContext) -> Evaluator:
        return MaskedLoss(self.factor)
