"""MAUVE: against the published implementation, at its ends, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from sm_diffusion.evaluation.generation.mauve import MauveScorer, mauve_score
from sm_diffusion.evaluation.generation.reader import CausalJudge, load_judge
from sm_diffusion.types import UserError
from tests.helpers.judges import some_texts


def test_mauve_missing_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(UserError, match=r"pip install 'sm-diffusion\[eval\]'"):
        mauve_score(np.zeros((8, 2), np.float32), np.zeros((8, 2), np.float32), seeds=[1])


def test_mauve_agrees_with_mauve_text_on_its_own_examples() -> None:
    """Its documentation's call with features, all defaults: the same number, at several sizes and seeds."""
    mauve = pytest.importorskip("mauve", reason="mauve-text is not installed (pip install 'sm-diffusion[eval]')")
    rng = np.random.default_rng(0)
    for num_p, num_q, seed, scaling in ((100, 100, 25, 5.0), (40, 61, 26, 5.0), (60, 25, 25, 2.0)):
        p = rng.normal(size=(num_p, 16)).astype(np.float32)
        q = (rng.normal(size=(num_q, 16)) + 0.4).astype(np.float32)
        own = mauve.compute_mauve(p_features=p, q_features=q, seed=seed, mauve_scaling_factor=scaling, verbose=False)
        ours = mauve_score(q, p, seeds=[seed], scaling=scaling)
        assert ours.by_seed[seed] == float(own.mauve)
        assert ours.num_clusters == own.num_buckets
        assert 0.05 < own.mauve < 0.99  # neither end, where agreement would say nothing


def test_mauve_of_equal_and_of_disjoint_sets() -> None:
    pytest.importorskip("mauve", reason="mauve-text is not installed (pip install 'sm-diffusion[eval]')")
    rng = np.random.default_rng(0)
    same = rng.normal(size=(60, 8)).astype(np.float32)
    equal = mauve_score(same, same, seeds=[25, 26])
    assert equal.by_seed == {25: pytest.approx(1.0, abs=1e-6), 26: pytest.approx(1.0, abs=1e-6)}
    apart = mauve_score(same, same + 100, seeds=[25])
    assert apart.spread.mean < 0.05
    text = apart.describe()
    assert "25: " in text
    assert "n = 60 samples, 60 references, 6 clusters" in text
    caution = apart.caution()
    assert caution is not None
    assert "n = 60 texts in 6 clusters" in caution
    assert apart._replace(num_samples=5000, num_references=5000).caution() is None


def test_mauve_of_a_handful_of_texts_is_refused() -> None:
    pytest.importorskip("mauve", reason="mauve-text is not installed (pip install 'sm-diffusion[eval]')")
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    with pytest.raises(UserError, match=r"evaluator\.num_samples=12: MAUVE of n = 12 texts would have 2 clusters"):
        mauve_score(features[:12], features, seeds=[25])
    with pytest.raises(UserError, match=r"evaluator\.mauve_references=19: MAUVE of n = 19 .*at least 20"):
        mauve_score(features, features[:19], seeds=[25])


def test_features_of_the_references_are_made_once(
    judge_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    references = some_texts(40)
    judge, calls = load_judge(str(judge_folder)), []
    original = CausalJudge.features
    monkeypatch.setattr(CausalJudge, "features", lambda self, texts: calls.append(len(texts)) or original(self, texts))

    def scorer(texts: list[str]) -> MauveScorer:
        return MauveScorer(model=judge, references=texts, seeds=[25], scaling=5.0, cache_dir=tmp_path)

    first = scorer(references).reference_features()
    again = scorer(references).reference_features()
    assert calls == [40]
    np.testing.assert_array_equal(first, again)
    scorer(references[1:]).reference_features()  # other texts are read
    assert calls == [40, 39]
    assert len(list(tmp_path.glob("mauve-*.npy"))) == 2
