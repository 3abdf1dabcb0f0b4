"""What a user chooses of evaluator=generative, and how it becomes samples, their readers and their caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sm_diffusion.evaluation.base import EvalContext, Evaluator, not_positive
from sm_diffusion.evaluation.generation.evaluator import GenerativeEvaluator, SampleSet, SamplingPlan, Scorers
from sm_diffusion.evaluation.generation.mauve import FEWEST, MauveScorer, require_mauve, too_few
from sm_diffusion.evaluation.generation.reader import CausalJudge, load_judge
from sm_diffusion.evaluation.generation.samples import GenerationCache, cache_folder
from sm_diffusion.registry import register
from sm_diffusion.types import UserError


@register("evaluator", "generative")
@dataclass
class GenerativeSettings:
    """Unconditional samples, made once into a cache, and what a judge and their statistics say of them."""

    num_samples: int = 64  # published: 5,000
    length: int | None = None  # tokens a sample; null: the model's length
    temperatures: list[float] = field(default_factory=list)  # gen-PPL/entropy frontier; empty: the sampler's own
    samples_dir: str | None = None  # folder of the samples; null: below the corpus cache, by content
    judge: str | None = "gpt2-large"  # hub name, folder or GGUF file of a causal LM; null: no generative perplexity
    judge_tokens: int = 1024  # tokens of a text that count
    judge_batch_sequences: int = 4
    mauve: bool = False  # needs the extra: pip install sm-diffusion[eval]
    mauve_features: str = "gpt2-large"  # as judge
    mauve_seeds: list[int] = field(default_factory=lambda: [25, 26, 27])  # of k-means; 25 is reported, else the mean
    mauve_references: int | None = None  # validation sequences; null: as many as samples
    mauve_scaling: float = 5.0

    def problems(self) -> Iterator[str]:
        yield from not_positive(
            self, "num_samples", "length", "judge_tokens", "judge_batch_sequences", "mauve_references"
        )
        if any(not temperature >= 0 for temperature in self.temperatures):
            yield f"evaluator.temperatures={self.temperatures}: each must be >= 0"
        if self.mauve and not self.mauve_seeds:
            yield "evaluator.mauve_seeds=[]: give at least one seed of k-means, such as [25]"
        references = self.mauve_references or self.num_samples
        if self.mauve and min(self.num_samples, references) < FEWEST:
            yield too_few(self.num_samples, references)

    def build(self, context: EvalContext) -> Evaluator:
        """Judge and MAUVE's model are loaded first: what is missing shows before any sample is made."""
        model = context.model
        length = self.length or model.length
        if length > model.length:
            raise UserError(f"evaluator.length={length}: the model takes {model.length} tokens; set it to at most that")
        scorers = self._scorers(context) if context.first_rank else Scorers()
        processes = context.processes
        plan = SamplingPlan(
            count=self.num_samples,
            length=length,
            decode=_decode(context),
            batch_sequences=context.batch_sequences,
            rank=processes.rank,
            world_size=processes.world_size,
            wait=processes.wait,
            autocast=processes.autocast,
        )
        return GenerativeEvaluator(
            sets=list(self._sample_sets(context, length)),
            plan=plan,
            scorers=scorers,
            frontier_plot=context.output_dir / "frontier.png",
            protocol={
                "num_samples": self.num_samples,
                "length": length,
                "seed": context.seed,
                "sampler": context.values_of(context.sampler),
                "judge": self.judge,
                "judge_tokens": self.judge_tokens,
                "entropy": "unigram, nats, per sample over the model's token ids, averaged",
                "ppl": "text re-tokenised by the judge; tokens up to and including the first end of text count",
            },
        )

    def _sample_sets(self, context: EvalContext, length: int) -> Iterator[SampleSet]:
        """One for each temperature, each with its cache."""
        model = context.model
        for temperature in self.temperatures or [context.sampler.temperature]:
            sampler = context.sampler.with_overrides(steps=None, temperature=temperature)
            key: dict[str, Any] = {
                "checkpoint_sha256": model.sha256,
                "weights": model.weights,
                "sampler": context.values_of(sampler),
                "length": length,
                "seed": context.seed,
            }
            if sampler.reuse_unchanged_batch:  # then a text depends on its batch
                key["batch_sequences"] = context.batch_sequences
            if self.samples_dir is None:
                folder = cache_folder(context.cache_dir / "generations", key)
            else:
                folder = Path(self.samples_dir).expanduser()
                folder = folder / f"T{temperature:g}" if len(self.temperatures) > 1 else folder
            yield SampleSet(temperature, model.sampler(sampler), GenerationCache(folder, key))

    def _scorers(self, context: EvalContext) -> Scorers:
        """Of the first rank. Loaded on the CPU, moved to the device when the samples are made."""
        shared: dict[str, Any] = {"max_tokens": self.judge_tokens, "batch_sequences": self.judge_batch_sequences}
        judge = None if self.judge is None else load_judge(self.judge, **shared)
        if not self.mauve:
            return Scorers(judge=_moved(judge, context.device_type), say=context.say)
        require_mauve()
        same = judge is not None and self.judge == self.mauve_features
        model = judge if same else load_judge(self.mauve_features, key="evaluator.mauve_features", **shared)
        assert model is not None
        references = self._references(context)
        if len(references) < FEWEST:
            raise UserError(too_few(self.num_samples, len(references)))
        scorer = MauveScorer(
            model=model,
            references=references,
            seeds=self.mauve_seeds,
            scaling=self.mauve_scaling,
            cache_dir=context.cache_dir,
        )

        def mauve() -> MauveScorer:
            scorer.model.model.to(context.device_type)
            return scorer

        return Scorers(judge=_moved(judge, context.device_type), mauve=mauve, say=context.say)

    def _references(self, context: EvalContext) -> list[str]:
        """The first validation sequences as text."""
        count = self.mauve_references or self.num_samples
        texts: list[str] = []
        decode = _decode(context)
        for ids in context.validation().rows():
            texts.append(decode(ids))
            if len(texts) == count:
                return texts
        found = f"the validation split has {len(texts)} sequences, all are used"
        context.say(f"evaluator.mauve_references={count}: {found}")
        return texts


def _decode(context: EvalContext) -> Callable[[Sequence[int]], str]:
    """Ids to text as the model was trained: with the chat's special tokens, where it has a chat form."""
    model = context.model
    return model.tokenizer.decode if model.chat is None else model.chat.decode


def _moved(judge: CausalJudge | None, device: str) -> Callable[[], CausalJudge] | None:
    if judge is None:
        return None

    def move() -> CausalJudge:
        judge.model.to(device)
        return judge

    return move
