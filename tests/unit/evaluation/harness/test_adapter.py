"""Answers to lm-evaluation-harness, without the package: what they are, and that nothing else decides them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import sm_diffusion
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.predictor import SoftMaskPredictor
from sm_diffusion.diffusion.readouts.base import Logits
from sm_diffusion.diffusion.soft_mask import SoftMask
from sm_diffusion.evaluation.harness import adapter as lm_eval_adapter
from sm_diffusion.evaluation.harness.adapter import Harness
from sm_diffusion.evaluation.harness.settings import HarnessSettings, wish_of
from sm_diffusion.evaluation.harness.text import Texts
from sm_diffusion.evaluation.likelihood import MaskCount, MonteCarloLikelihood, Passage
from sm_diffusion.types import UserError
from tests.helpers.templates import END, MASK, TURN, write_model

PAIRS = [("is it odd?", " yes"), ("is it odd?", " no"), ("is it even? ", "no"), ("", "the cat"), ("is it odd?", " yes")]
WISHES = {"until": ["\n"], "max_gen_toks": 6, "do_sample": False}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return sm_diffusion.load(write_model(tmp_path_factory.mktemp("harness") / "model"))


@pytest.fixture(scope="module")
def soft(model: Any) -> Any:
    # A random network is unsure, about 5 nats: with omega_b below that, lambda is close to omega_s.
    soft_mask = SoftMask(top_k=2, omega_s=0.9, omega_a=2.0, omega_b=-8.0)
    denoiser = model.predictor.denoiser
    return dataclasses.replace(
        model, predictor=SoftMaskPredictor(denoiser, soft_mask, mask_id=MASK, mixing=mixing.linear).eval()
    )


def harness(model: Any, **settings: Any) -> Harness:
    return Harness(model, HarnessSettings.parse({"mc_samples": 4, **settings}))


def test_likelihoods_are_the_bound_of_the_ids(model: Any) -> None:
    kept: dict[int, Any] = {}
    found = harness(model, batch_size=8).loglikelihood(PAIRS, kept.__setitem__)
    assert kept == dict(enumerate(found))
    encode = model.tokenizer.encode_batch
    passages = [Passage(tuple(encode([c])[0]) or (END,), tuple(encode([t])[0])) for c, t in PAIRS]
    direct = MonteCarloLikelihood(model.predictor, MaskCount(num_samples=4), max_length=128)(passages)
    assert [log_prob for log_prob, _ in found] == pytest.approx([e.log_prob for e in direct], abs=1e-4)
    # The same pair in another row of the batch: a matrix product may sum it in another order.
    assert found[0] == (pytest.approx(found[4][0], abs=1e-4), found[4][1])
    one_by_one = [harness(model).loglikelihood([pair])[0][0] for pair in PAIRS]
    assert [log_prob for log_prob, _ in found] == pytest.approx(one_by_one, abs=1e-4)


def test_feedback_is_the_soft_masked_models_own(model: Any, soft: Any) -> None:
    def scores(one: Any, **settings: Any) -> list[float]:
        return [value for value, _ in harness(one, is_greedy=False, **settings).loglikelihood(PAIRS[:2])]

    plain = scores(model)
    assert scores(soft, feedback="false") == pytest.approx(plain, abs=1e-4)
    assert abs(scores(soft)[0] - plain[0]) > 1e-3


def greedy_twin(model: Any, prompt: list[int], count: int) -> list[int]:
    """One token a step, the most probable at the surest position, by full logits."""
    ids = [*prompt, *[MASK] * count]
    for _ in range(count):
        with torch.no_grad():
            probs = model.predictor(torch.tensor([ids]), None, Logits())[0].double().softmax(-1)
        probs[:, MASK] = 0
        place = max((i for i, token in enumerate(ids) if token == MASK), key=lambda i: float(probs[i].max()))
        ids[place] = int(probs[place].argmax())
    return ids[len(prompt) :]


def test_is_greedy_is_what_greedy_decoding_gives(model: Any) -> None:
    from sm_diffusion.evaluation.harness.decode import greedy_matches

    prompt = model.tokenizer.encode_batch(["is it odd?"])[0]
    expected = tuple(greedy_twin(model, prompt, 4))
    other = (*expected[:3], (expected[3] + 1) % 256)
    passages = [Passage(tuple(prompt), expected), Passage(tuple(prompt), other), Passage(tuple(prompt[1:]), expected)]
    alone = greedy_matches(model, passages[:1], 1)
    assert alone == {0: True}
    together = greedy_matches(model, passages, 8)
    assert (together[0], together[1]) == (True, False)


def test_whole_texts_are_the_sum_of_their_windows(model: Any) -> None:
    text = "the cat sat on a mat"
    ids = model.tokenizer.encode_batch([text])[0]
    found = harness(model, max_length=9).loglikelihood_rolling([text, "", text])
    parts = [Passage((END, *ids)[start : start + 1], tuple(ids[start : start + 8])) for start in (0, 8, 16)]
    direct = MonteCarloLikelihood(model.predictor, MaskCount(num_samples=4), max_length=9)(parts)
    assert found[0] == pytest.approx(sum(e.log_prob for e in direct), abs=1e-4)
    assert found[1] == 0.0
    assert found[2] == pytest.approx(found[0], abs=1e-4)


def test_answers_depend_on_their_request_alone(model: Any, soft: Any) -> None:
    requests = [(text, WISHES) for text in ("is it odd?", "a", "is it odd?", "what is it then? ")]
    for one in (model, soft):
        kept: dict[int, str] = {}
        settings = {"temperature": 1.0, "sampler": "ancestral"}
        found = harness(one, batch_size=4, **settings).generate_until(requests, kept.__setitem__)
        assert kept == dict(enumerate(found))
        assert harness(one, **settings).generate_until(requests) == found
        assert harness(one, **settings).generate_until(requests[1:2]) == found[1:2]
        assert found[0] != found[2], "repeats of a request are other draws"
        assert harness(one, seed=2, **settings).generate_until(requests) != found
    greedy = harness(model).generate_until([requests[0], requests[2]])
    assert greedy[0] == greedy[1], "do_sample: false"


def test_where_an_answer_ends(model: Any) -> None:
    texts = Texts(model.tokenizer, model.chat, 64)
    ids = [*model.tokenizer.encode_batch(["one\ntwo"])[0], TURN, 5, 6]
    assert texts.answer(ids, []) == "one\ntwo"
    assert texts.answer(ids, ["\n", ""]) == "one"
    assert texts.answer([END, *ids], []) == ""
    rendered = texts.render([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert rendered == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert texts.ids(rendered) == model.chat.prompt([{"role": "user", "content": "hi"}])
    assert texts.pair(rendered, "yes", 0).context == tuple(texts.ids(rendered)), "the template's line end stays"
    assert len(texts.prompt("x" * 100, 10, 0)) == 54
    assert texts.num_truncated == 1


def test_what_a_task_asks_for() -> None:
    settings = HarnessSettings.parse({})
    assert wish_of({}, settings, 512) == (256, (), None, None)
    assert wish_of({"until": "x", "max_tokens": 3, "temperature": 0.5, "do_sample": True}, settings, 512) == (
        3,
        ("x",),
        0.5,
        None,
    )
    assert wish_of(WISHES, settings, 512).temperature == 0
    own = HarnessSettings.parse({"temperature": 0.1, "max_gen_toks": "2", "top_p": 0.9})
    assert wish_of(WISHES, own, 512) == (2, ("\n",), 0.1, 0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nothing": 1}, r"model_args: nothing=1: unknown model argument; known are pretrained, weights, batch_size"),
        ({"batch_size": "auto"}, r"batch_size=auto: must be int"),
        ({"mc_samples": 0, "nfe": -1.0}, r"mc_samples=0: must be > 0; nfe=-1.0: must be > 0"),
        ({"mc_samples": 3}, r"mc_samples=3: must be even"),
        ({"mc_estimator": "best"}, r"mc_estimator=best: choose mask_count or continuous_time"),
        ({"feedback": "maybe"}, r"feedback=maybe: must be bool"),
        ({"max_length": 1000}, r"max_length=1000: must lie between 2 and the model's 128"),
    ],
)
def test_bad_settings_are_one_line(model: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        harness(model, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "request_", "message"),
    [
        ("loglikelihood", ("a", "b" * 128), r"request 0: the continuation has 128 tokens, the model takes 128"),
        ("loglikelihood", ("a", ""), r"request 0: the continuation '' has no token"),
        ("loglikelihood", ("a <|mask|>", "b"), r"a request holds the mask token 259"),
        ("generate_until", ("a <|mask|>", WISHES), r"request 0 holds the mask token 259"),
        ("generate_until", ("a", {"max_gen_toks": 200}), r"max_gen_toks=200: the model takes 128 .*max_gen_toks=64"),
        ("generate_until", ("a", {"num_beams": 3}), r"num_beams=3: not supported; known are max_gen_toks"),
    ],
)
def test_bad_requests_are_one_line(model: Any, kind: str, request_: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        getattr(harness(model), kind)([request_])
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_chat_template(model: Any) -> None:
    silent = harness(dataclasses.replace(model, chat=None))
    with pytest.raises(UserError, match=r"--apply_chat_template: the model has no chat template .*leave it out"):
        silent.apply_chat_template([{"role": "user", "content": "hi"}], True)
    with pytest.raises(UserError, match="--apply_chat_template other: there is one template only"):
        harness(model).texts.template("other")
    assert harness(model).texts.template(False) is None


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'sm-diffusion\[eval\]'"):
        lm_eval_adapter.register(sm_diffusion.load)


def test_records_name_everything_that_decides_a_number(model: Any, tmp_path: Path) -> None:
    info = harness(model, seed=3).info()["sm_diffusion"]
    assert info["seed"] == 3
    assert {"checkpoint", "variant", "mc_samples", "sampler", "nfe", "length", "tokenizer_fingerprint"} <= set(info)
