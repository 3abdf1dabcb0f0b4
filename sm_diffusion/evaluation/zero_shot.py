"""Zero-shot perplexity: the checkpoint's bound on corpora it was not trained on, in one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from sm_diffusion.data.corpora.base import Document
from sm_diffusion.data.stores.packing import wrap_documents
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.evaluation.base import EvalContext, EvalResult, Evaluator
from sm_diffusion.evaluation.perplexity import perplexity_metrics
from sm_diffusion.types import Batch, UserError

_ENCODE_DOCUMENTS = 256  # encoded at once


class BatchLoader:
    """Batches as a loader; Lightning takes a plain list for several loaders."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


@dataclass(frozen=True)
class PackedText:
    """Documents as rows of the model's length, EOS between them; the last, partial row is dropped.

    rows_NL: int64.     bytes_per_token: UTF-8 bytes of all documents / all their tokens, EOS included.
    """

    rows_NL: NDArray[np.int64]
    bytes_per_token: float

    def loader(self, batch_sequences: int, max_sequences: int | None) -> BatchLoader:
        """Rows evenly spread over the text; a row's noise follows its index, so batches do not matter."""
        total = len(self.rows_NL)
        count = total if max_sequences is None else min(total, max_sequences)
        chosen = np.arange(count, dtype=np.int64) * total // count
        parts = [chosen[start : start + batch_sequences] for start in range(0, count, batch_sequences)]
        return BatchLoader(
            [Batch(ids_BL=torch.from_numpy(self.rows_NL[part]), rows_B=torch.from_numpy(part)) for part in parts]
        )


def pack(
    documents: Iterable[Document], tokenizer: TextTokenizer, *, length: int, name: str, add_eos: bool = True
) -> PackedText:
    """Tokenise and wrap. UserError naming the source when it is shorter than one row. add_eos: between documents."""
    num_bytes = num_tokens = 0
    eos_id = tokenizer.eos_id if add_eos else None

    def encoded() -> Iterator[list[int]]:
        nonlocal num_bytes, num_tokens
        for texts in _groups(documents):
            num_bytes += sum(len(tokenizer.normalize(text).encode()) for text in texts)
            for ids in tokenizer.encode_batch(texts):
                num_tokens += len(ids) + add_eos
                yield ids

    windows = list(wrap_documents(encoded(), length=length, eos_id=eos_id, dtype=np.int64))
    if not windows:
        raise UserError(
            f"evaluator.sources: {name} has {num_tokens} tokens, less than one sequence of {length}; give more text"
        )
    return PackedText(np.concatenate(windows), num_bytes / num_tokens)


def _groups(documents: Iterable[Document]) -> Iterator[list[str]]:
    texts: list[str] = []
    for document in documents:
        texts.append(document.text)
        if len(texts) == _ENCODE_DOCUMENTS:
            yield texts
            texts = []
    if texts:
        yield texts


MeasureBatches = Callable[[PackedText, bool, int], float]  # (text, feedback, seed) -> mean NLL, nats


class ZeroShotEvaluator(Evaluator):
    """`zero_shot/<source>/ppl` and the other perplexity metrics, for a model with a memory with and without feedback.

    sources:  name -> text.
    feedback: None reports both where both exist.
    measure:  as `EvalContext.measure_nll`, of given batches.
    """

    def __init__(self, *, sources: Mapping[str, PackedText], feedback: bool | None, measure: MeasureBatches) -> None:
        self.sources = dict(sources)
        self.feedback = feedback
        self.measure = measure

    def evaluate(self, context: EvalContext) -> EvalResult:
        has_memory = context.predictor.may_skip_parameters
        if self.feedback and not has_memory:
            raise UserError("evaluator.feedback=true: this checkpoint is a plain MDLM without memory; leave it out")
        readings = [("", True), ("_without_feedback", False)] if has_memory else [("", True)]
        if has_memory and self.feedback is not None:
            readings = [reading for reading in readings if reading[1] == self.feedback]
        metrics: dict[str, float] = {}
        for name, text in self.sources.items():
            for suffix, feedback in readings:
                nll = self.measure(text, feedback, context.seed)
                found = perplexity_metrics(nll, text.bytes_per_token)
                metrics |= {f"zero_shot/{name}/{key}{suffix}": value for key, value in found.items()}
        return EvalResult(metrics=metrics, protocol={"seed": context.seed, "sources": list(self.sources)})
