"""What evaluators are given is made when it is asked for, and not before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sm_diffusion.app.evaluation import Evaluation
from sm_diffusion.config.compose import compose_config
from sm_diffusion.registry import components
from sm_diffusion.types import UserError


def context(*words: str) -> Evaluation:
    return Evaluation(compose_config("eval", ["checkpoint=nowhere.ckpt", "accelerator=cpu", *words]))


def test_nothing_is_opened_before_it_is_asked_for(tmp_path: Path) -> None:
    made = context(f"output_dir={tmp_path}", "seed=3")
    assert (made.seed, made.checkpoint, made.output_dir, made.device_type) == (3, "nowhere.ckpt", tmp_path, "cpu")
    made.config.evaluator.build(made)  # perplexity
    with pytest.raises(UserError, match=r"nowhere\.ckpt: no such file"):
        _ = made.model


def test_a_benchmark_is_refused_before_the_model_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "gsm8k.jsonl"
    path.write_text(json.dumps({"question": "1+1?"}) + "\n")
    made = context("evaluator=gsm8k", f"evaluator.path={path}")
    with pytest.raises(UserError, match=r"line 1: missing field answer"):
        made.config.evaluator.build(made)


def test_every_evaluator_builds_itself() -> None:
    for component in components("evaluator"):
        assert callable(component.thing.build), component.name


def test_what_evaluators_may_ask_of_samplers_and_corpora() -> None:
    made = context("sampler=ancestral")
    assert made.values_of(made.sampler)["name"] == "ancestral"
    assert made.named_sampler("confidence_entropy").name == "confidence"
    assert {"python_text", "wikitext103"} <= set(made.data_options())
    documents, add_eos = made.documents("python_text")
    assert next(documents).text
    assert add_eos
