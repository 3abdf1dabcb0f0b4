"""MAUVE (Pillutla et al. 2021): how far two sets of texts are apart, in (0, 1], 1 for the same distribution.

The divergence is mauve-text's (GPL-3, an optional extra, imported where it is used); the features are ours, so that
they depend on no batch size and those of the reference texts are computed once. The score depends strongly on n and
on the seed of k-means: both are always reported with it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from sm_diffusion.evaluation.generation.reader import CausalJudge
from sm_diffusion.evaluation.spread import Spread, spread
from sm_diffusion.files import digest, write_whole
from sm_diffusion.types import UserError

EXTRA = "evaluator.mauve=true: the package mauve-text is missing; install the extra: pip install 'sm-diffusion[eval]'"


HEADLINE_SEED = 25  # mauve-text's default, which the published scores were made with
FEWEST = 20  # texts of each kind: below, k-means gets two clusters and the score says next to nothing
NOISY = 1000  # texts below which mauve-text's authors expect an optimistic and unstable score


def require_mauve() -> Any:
    """The module, or UserError naming the extra."""
    try:
        import mauve
    except ImportError:
        raise UserError(EXTRA) from None
    return mauve


class MauveScore(NamedTuple):
    """by_seed: k-means seed -> score.  spread: over the seeds.  n: samples, references.  clusters: of k-means."""

    by_seed: dict[int, float]
    spread: Spread
    num_samples: int
    num_references: int
    num_clusters: int

    @property
    def headline(self) -> float:
        """The score to report: that of k-means seed 25 as published (IBM language/main.py:221), or the mean without."""
        return self.by_seed.get(HEADLINE_SEED, self.spread.mean)

    def describe(self) -> str:
        """The score is meaningless without these."""
        values = ", ".join(f"{seed}: {value:.4f}" for seed, value in self.by_seed.items())
        return (
            f"MAUVE {self.headline:.4f} (by k-means seed {values}; n = {self.num_samples} samples, "
            f"{self.num_references} references, {self.num_clusters} clusters)"
        )

    def caution(self) -> str | None:
        """A line for the reader where the score is optimistic and unstable for want of texts."""
        fewest = min(self.num_samples, self.num_references)
        if fewest >= NOISY:
            return None
        return (
            f"MAUVE of n = {fewest} texts in {self.num_clusters} clusters is too high and noisy: compare it with "
            f"scores of the same n only, or set evaluator.num_samples and evaluator.mauve_references to {NOISY} or more"
        )


def reference_order(num_windows: int, count: int, seed: int) -> list[int]:
    """Numbers of the validation windows that are the human texts, in the order in which the released loader gives them.

    A generator of `seed` draws one int64 (the base seed of a DataLoader's workers) and then permutes all windows; the
    first `count` are taken, or all where there are fewer. Source: `load_human_references`, s-sahoo/duo ch-1
    dataloader.py:863 with the patch of IBM language/; their default seed is 1.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.empty((), dtype=torch.int64).random_(generator=generator)
    return torch.randperm(num_windows, generator=generator)[:count].tolist()


def too_few(num_samples: int, num_references: int) -> str:
    """The line that refuses a score of so few texts."""
    smallest = min(num_samples, num_references)
    key, count = ("num_samples", num_samples) if num_samples == smallest else ("mauve_references", num_references)
    return (
        f"evaluator.{key}={count}: MAUVE of n = {smallest} texts would have {max(2, round(smallest / 10))} clusters "
        f"and mean nothing; give at least {FEWEST} samples and {FEWEST} references (published: 5,000), or set "
        "evaluator.mauve=false"
    )


def mauve_score(
    samples_ND: NDArray[np.float32], references_ND: NDArray[np.float32], *, seeds: Sequence[int], scaling: float = 5.0
) -> MauveScore:
    """MAUVE of two sets of features with mauve-text's defaults: max(2, round(min n / 10)) clusters, PCA to 0.9.

    seeds: of k-means; one score each.     scaling: c in exp(-c KL); 5 as published.
    """
    mauve = require_mauve()
    smallest = min(len(samples_ND), len(references_ND))
    clusters = max(2, round(smallest / 10))
    if smallest < FEWEST:
        raise UserError(too_few(len(samples_ND), len(references_ND)))
    by_seed = {
        seed: float(
            mauve.compute_mauve(
                p_features=references_ND,
                q_features=samples_ND,
                num_buckets=clusters,
                seed=seed,
                mauve_scaling_factor=scaling,
                verbose=False,
            ).mauve
        )
        for seed in seeds
    }
    return MauveScore(by_seed, spread(list(by_seed.values())), len(samples_ND), len(references_ND), clusters)


@dataclass(frozen=True)
class MauveScorer:
    """references: texts.  cache_dir: keeps their features.  model: where features come from."""

    model: CausalJudge
    references: Sequence[str]
    seeds: Sequence[int]
    scaling: float
    cache_dir: Path

    def score(self, texts: Sequence[str]) -> MauveScore:
        return mauve_score(
            self.model.features(texts).numpy(), self.reference_features(), seeds=self.seeds, scaling=self.scaling
        )

    def reference_features(self) -> NDArray[np.float32]:
        """From the cache when the same model has read the same texts before."""
        first = next(self.model.model.parameters()).detach()
        weights = float(first.double().sum())  # a folder may come to hold another model
        key = json.dumps([self.model.name, weights, self.model.max_tokens, list(self.references)])
        path = self.cache_dir / f"mauve-{digest(key)[:24]}.npy"
        if path.exists():
            try:
                found: NDArray[np.float32] = np.load(path)
            except (OSError, ValueError):
                raise UserError(f"{path}: damaged; delete it to have it made again") from None
            return found
        features_ND: NDArray[np.float32] = self.model.features(self.references).numpy()
        write_whole(path, lambda temporary: _save(temporary, features_ND))
        return features_ND


def _save(path: Path, array: NDArray[np.float32]) -> None:
    with path.open("wb") as file:  # given a name, numpy would change it
        np.save(file, array)
