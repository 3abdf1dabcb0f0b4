"""Decoding for lm-evaluation-harness: answers to prompts, and whether greedy decoding gives a continuation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sm_diffusion.evaluation.harness.opened import OpenedModel
from sm_diffusion.evaluation.harness.settings import HarnessSettings, Wish
from sm_diffusion.evaluation.likelihood import Passage
from sm_diffusion.files import digest_bytes
from sm_diffusion.sampling import ConfidenceOrder, Sampler, Threshold, TokenSampling
from sm_diffusion.sampling.orders.confidence import build_measure
from sm_diffusion.types import UserError


class Job(NamedTuple):
    """One answer. place: of its request. repeat: how often the same was asked before; repeats are other draws."""

    place: int
    prompt: tuple[int, ...]
    wish: Wish
    repeat: int

    def seed(self, seed: int) -> int:
        """Of this job alone, whatever is asked before or beside it."""
        numbers = np.array([seed, self.repeat, *self.prompt], dtype="<i8").tobytes()
        return int.from_bytes(digest_bytes(numbers)[:8], "little")


def generate(
    model: OpenedModel,
    jobs: Sequence[Job],
    settings: HarnessSettings,
    answer: Callable[[Sequence[int], Sequence[str]], str],
    keep: Callable[[int, Any], None] | None,
) -> list[str]:
    """Answers in the order of the jobs; `keep` is called batch by batch, the longest prompts first."""
    mask_id, found = model.tokenizer.mask_id, {}
    groups: dict[tuple[int, float | None, float | None], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.wish.new_tokens, job.wish.temperature, job.wish.top_p), []).append(job)
    for (new_tokens, temperature, top_p), group in groups.items():
        sampler = model.answer_sampler(
            settings.sampler,
            new_tokens=new_tokens,
            nfe=settings.nfe,
            steps=settings.steps,
            temperature=temperature,
            top_p=top_p,
        )
        group.sort(key=lambda job: -len(job.prompt))
        for start in range(0, len(group), settings.batch_size):
            part = group[start : start + settings.batch_size]
            rows = [[*job.prompt, *[mask_id] * new_tokens] for job in part]
            texts = _filled(model, rows, sampler, [job.seed(settings.seed) for job in part])
            for job, ids in zip(part, texts, strict=True):
                found[job.place] = answer(ids[len(job.prompt) :], job.wish.until)
                if keep is not None:
                    keep(job.place, found[job.place])
    return [found[job.place] for job in jobs]


def greedy_matches(model: OpenedModel, passages: Sequence[Passage], batch_size: int) -> dict[int, bool]:
    """Whether decoding one token a step, the most probable at the surest position, gives the continuation.

    Continuations of one context with equally many tokens share a decoding.
    """
    predictor, mask_id = model.predictor, model.tokenizer.mask_id
    asked = {(passage.context, len(passage.continuation)) for passage in passages}
    for context, _ in asked:
        if mask_id in context:
            raise UserError(f"a request holds the mask token {mask_id}: remove it from the text")
    order = ConfidenceOrder(measure=build_measure("probability"), pace=Threshold(value=math.inf))
    sampler = Sampler(predictor, order, sampling=TokenSampling(temperature=0), schedule=model.told_schedule)
    queue = sorted(asked, key=lambda item: (-item[1], -len(item[0]), item[0]))
    decoded: dict[tuple[tuple[int, ...], int], tuple[int, ...]] = {}
    for start in range(0, len(queue), batch_size):
        part = queue[start : start + batch_size]
        rows = [[*context, *[mask_id] * count] for context, count in part]
        for (context, count), ids in zip(part, _filled(model, rows, sampler, [0] * len(part)), strict=True):
            decoded[context, count] = tuple(ids[len(context) :])
    return {
        index: decoded[passage.context, len(passage.continuation)] == passage.continuation
        for index, passage in enumerate(passages)
    }


def _filled(
    model: OpenedModel, rows: Sequence[Sequence[int]], sampler: Sampler, seeds: Sequence[int]
) -> list[list[int]]:
    return [ids for canvas, out in model.run_sampler(rows, sampler, seeds=seeds) for ids in canvas.texts(out.ids_BL)]
