"""Unconditional generation: samples made once, then read by a judge, counted, compared with real text, timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sm_diffusion.evaluation.base import EvalContext, EvalResult, Evaluator
from sm_diffusion.evaluation.generation.mauve import MauveScorer
from sm_diffusion.evaluation.generation.reader import CausalJudge, generative_perplexity
from sm_diffusion.evaluation.generation.samples import Generation, GenerationCache, generate_into
from sm_diffusion.evaluation.generation.text_stats import statistics_of
from sm_diffusion.files import write_whole
from sm_diffusion.sampling import Sampler


@dataclass(frozen=True)
class SampleSet:
    """One sampler's samples at one temperature, and where they are kept."""

    temperature: float
    sampler: Sampler
    cache: GenerationCache


@dataclass(frozen=True, kw_only=True)
class SamplingPlan:
    """How the samples are made.

    count, length:   samples, and tokens of each.     decode: ids to text.
    batch_sequences: changes no sample.                rank, world_size: of this process.
    wait:            returns once every rank has called it.
    autocast:        the precision of the network's forward passes.
    """

    count: int
    length: int
    decode: Callable[[Sequence[int]], str]
    batch_sequences: int
    rank: int = 0
    world_size: int = 1
    wait: Callable[[], object] = lambda: None
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext


@dataclass(frozen=True, kw_only=True)
class Scorers:
    """What reads the samples; loaded when the samples are there.

    judge, mauve: make the scorer, or None for none.     say: prints a line for the user.
    """

    judge: Callable[[], CausalJudge] | None = None
    mauve: Callable[[], MauveScorer] | None = None
    say: Callable[[str], None] = field(default=lambda text: None)


class GenerativeEvaluator(Evaluator):
    """Metrics `gen/*` of each sample set; with several temperatures `gen/*@T`, and the gen-PPL/entropy frontier.

    ppl (exp of nats a judged token), entropy (nats), distinct_1..3, repetition_4, mauve, nfe (a sample),
    tokens_per_second (of one process). Only rank 0 scores; other ranks return no metrics.
    """

    def __init__(
        self,
        *,
        sets: Sequence[SampleSet],
        plan: SamplingPlan,
        scorers: Scorers,
        frontier_plot: Path,
        protocol: dict[str, Any],
    ) -> None:
        self.sets = list(sets)
        self.plan = plan
        self.scorers = scorers
        self.frontier_plot = frontier_plot
        self.protocol = protocol

    def evaluate(self, context: EvalContext) -> EvalResult:
        for sample_set in self.sets:
            self._generate(sample_set)
        self.plan.wait()
        if self.plan.rank:
            return EvalResult(metrics={})
        judge = self.scorers.judge() if self.scorers.judge is not None else None
        mauve = self.scorers.mauve() if self.scorers.mauve is not None else None
        metrics: dict[str, float] = {}
        protocol = dict(self.protocol)
        frontier: list[dict[str, float]] = []
        caution: str | None = None
        for sample_set in self.sets:
            suffix = f"@{sample_set.temperature:g}" if len(self.sets) > 1 else ""
            samples = sample_set.cache.read(self.plan.count)
            found = _own_metrics(samples)
            if judge is not None:
                found |= _judged(judge, samples)
            if mauve is not None:
                score = mauve.score([sample.text for sample in samples])
                found |= {"mauve": score.headline, "mauve_std": score.spread.std or 0.0}
                protocol[f"mauve{suffix}"] = score.describe()
                self.scorers.say(score.describe() + (f" at temperature {suffix[1:]}" if suffix else ""))
                caution = score.caution()
            metrics |= {f"gen/{name}{suffix}": value for name, value in found.items()}
            protocol[f"samples{suffix}"] = str(sample_set.cache.folder)
            if judge is not None:
                frontier.append(
                    {"temperature": sample_set.temperature, "ppl": found["ppl"], "entropy": found["entropy"]}
                )
        if caution is not None:
            self.scorers.say(caution)
        if len(frontier) > 1:
            draw_frontier(frontier, self.frontier_plot)
            protocol |= {"frontier": frontier, "frontier_plot": str(self.frontier_plot)}
            self.scorers.say(f"gen-PPL/entropy frontier drawn to {self.frontier_plot}")
        return EvalResult(metrics=metrics, protocol=protocol)

    def _generate(self, sample_set: SampleSet) -> None:
        plan = self.plan
        with plan.autocast():
            made = generate_into(
                sample_set.cache,
                sample_set.sampler,
                count=plan.count,
                length=plan.length,
                decode=plan.decode,
                batch_sequences=plan.batch_sequences,
                rank=plan.rank,
                world_size=plan.world_size,
            )
        if plan.rank == 0:
            self.scorers.say(f"{plan.count} samples in {sample_set.cache.folder}, {made} made now by this process")


def _own_metrics(samples: Sequence[Generation]) -> dict[str, float]:
    tokens, seconds = sum(len(sample.ids) for sample in samples), math.fsum(sample.seconds for sample in samples)
    return {
        **statistics_of([sample.ids for sample in samples]),
        "nfe": sum(sample.nfe for sample in samples) / len(samples),
        "tokens_per_second": tokens / max(seconds, 1e-9),
        "num_samples": float(len(samples)),
    }


def _judged(judge: CausalJudge, samples: Sequence[Generation]) -> dict[str, float]:
    scores = judge.score([sample.text for sample in samples])
    return {
        "ppl": generative_perplexity(scores),
        "judged_tokens": float(sum(score.num_tokens for score in scores)),
        "texts_without_score": float(sum(score.num_tokens == 0 for score in scores)),
    }


def draw_frontier(points: Sequence[dict[str, float]], out: Path) -> Path:
    """gen-PPL (log axis) against unigram entropy, a dot for each temperature: better is lower right. PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.6, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    ordered = sorted(points, key=lambda point: point["temperature"])
    entropy, ppl = ([point[name] for point in ordered] for name in ("entropy", "ppl"))
    axes.plot(entropy, ppl, color="#0072B2", marker="o", markersize=4, linewidth=1.5)
    for point in ordered:
        axes.annotate(
            f"T = {point['temperature']:g}",
            (point["entropy"], point["ppl"]),
            textcoords="offset points",
            xytext=(-6, 6),  # the curve leaves a point to the upper right
            horizontalalignment="right",
            fontsize=8,
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:,.4g}")
    axes.yaxis.set_minor_formatter("{x:,.4g}")
    axes.set_xlabel("unigram entropy of a sample, nats (higher: more varied)")
    axes.set_ylabel("generative perplexity (lower: more likely)")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12, y=0.12)
    return write_whole(out, lambda temporary: figure.savefig(temporary, format="png", dpi=160))
