"""Zero-shot perplexity: the checkpoint's bound on corpora it was not trained on, in one run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from sm_diffusion.data.corpora.base import Document, TextFiles
from sm_diffusion.data.stores.packing import wrap_documents
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.evaluation.base import EvalContext, EvalResult, Evaluator, not_positive
from sm_diffusion.evaluation.perplexity import perplexity_metrics, readings
from sm_diffusion.registry import MISSING, register
from sm_diffusion.sampling.settings import SamplerSettings
from sm_diffusion.types import Batch, UserError

_ENCODE_DOCUMENTS = 256  # encoded at once


@dataclass(frozen=True)
class PackedText:
    """Documents as rows of the model's length, EOS between them; the last, partial row is dropped.

    rows_NL: int64.     bytes_per_token: UTF-8 bytes of all documents / all their tokens, EOS included.
    """

    rows_NL: NDArray[np.int64]
    bytes_per_token: float

    def batches(self, batch_sequences: int, max_sequences: int | None) -> list[Batch]:
        """Rows evenly spread over the text; a row's noise follows its index, so batches do not matter."""
        total = len(self.rows_NL)
        count = total if max_sequences is None else min(total, max_sequences)
        chosen = np.arange(count, dtype=np.int64) * total // count
        parts = [chosen[start : start + batch_sequences] for start in range(0, count, batch_sequences)]
        return [Batch(ids_BL=torch.from_numpy(self.rows_NL[part]), rows_B=torch.from_numpy(part)) for part in parts]


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


def source_documents(name: str, context: EvalContext) -> tuple[Iterator[Document], bool]:
    """The validation documents of a data option, or all documents of text files; and whether EOS goes between them."""
    options = context.data_options()
    if name in options:
        return context.documents(name)
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


class ZeroShotEvaluator(Evaluator):
    """`zero_shot/<source>/ppl` and the other perplexity metrics, for a model with a memory with and without feedback.

    sources:       name -> text.
    feedback:      None reports both where both exist.
    max_sequences: of each source; None: all.
    """

    def __init__(
        self, *, sources: Mapping[str, PackedText], feedback: bool | None, max_sequences: int | None
    ) -> None:
        self.sources = dict(sources)
        self.feedback = feedback
        self.max_sequences = max_sequences

    def evaluate(self, context: EvalContext) -> EvalResult:
        plain = not context.model.predictor.may_skip_parameters
        wanted = readings(context, None if plain and not self.feedback else self.feedback)
        metrics: dict[str, float] = {}
        for name, text in self.sources.items():
            batches = text.batches(context.batch_sequences, self.max_sequences)
            for feedback, suffix in wanted:
                nll = context.nll(batches, num_rows=len(text.rows_NL), feedback=feedback, seed=context.seed)
                found = perplexity_metrics(nll, text.bytes_per_token)
                metrics |= {f"zero_shot/{name}/{key}{suffix}": value for key, value in found.items()}
        return EvalResult(metrics=metrics, protocol={"seed": context.seed, "sources": list(self.sources)})


@register("evaluator", "zero_shot")
@dataclass
class ZeroShotSettings:
    """Perplexity on several corpora in one run, with the checkpoint's tokenizer and length."""

    sources: list[str] = MISSING  # names of data options (their validation part), or text files, folders and globs
    feedback: bool | None = None  # as for perplexity
    max_sequences: int | None = None  # of each source, evenly spread; null: all

    def problems(self) -> Iterator[str]:
        yield from not_positive(self, "max_sequences")
        if not self.sources:
            yield "evaluator.sources=[]: no corpora given; name data options or text files"

    def problems_in_evaluation(self, sampler: SamplerSettings, devices: int) -> Iterator[str]:
        if devices > 1:
            yield f"devices={devices}: evaluator=zero_shot runs in one process; set devices=1"

    def build(self, context: EvalContext) -> Evaluator:
        sources = {}
        for name in self.sources:
            documents, add_eos = source_documents(name, context)
            tokenizer, length = context.model.tokenizer, context.model.length
            sources[_label(name)] = pack(documents, tokenizer, length=length, name=name, add_eos=add_eos)
        if len(sources) < len(self.sources):
            raise UserError(f"evaluator.sources={self.sources}: two of them have the same name; rename a file")
        return ZeroShotEvaluator(sources=sources, feedback=self.feedback, max_sequences=self.max_sequences)
