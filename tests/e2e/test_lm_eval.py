"""lm-evaluation-harness's own command over local tasks: all kinds of requests, and a run that is interrupted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sm_diffusion
from sm_diffusion.cli import main as cli
from sm_diffusion.evaluation.harness.adapter import register
from sm_diffusion.evaluation.likelihood import MonteCarloLikelihood
from sm_diffusion.types import UserError
from tests.helpers.harness import TASKS, write_tasks
from tests.helpers.templates import write_model

pytest.importorskip("lm_eval", reason="lm-evaluation-harness: pip install 'sm-diffusion[eval]'")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("lm_eval")
    write_model(root / "model")
    write_tasks(root / "tasks")
    return root


def lm_eval(root: Path, name: str, *extra: str, tasks: str = "smd_choice") -> dict[str, Any]:
    """What its results file holds."""
    out = root / name
    arguments = ["run", "--model", "sm_diffusion", "--model_args", f"pretrained={root / 'model'},mc_samples=4"]
    arguments += ["--tasks", tasks, "--include_path", str(root / "tasks"), "--batch_size", "8"]
    assert cli.main(["lm-eval", "--", *arguments, "--output_path", str(out), "--log_samples", *extra]) == 0
    (file,) = out.rglob("results_*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def answers(root: Path, name: str) -> list[float]:
    """Log probabilities of all choices, document by document."""
    (file,) = (root / name).rglob("samples_smd_choice_*.jsonl")
    lines = sorted((json.loads(line) for line in file.read_text().splitlines()), key=lambda line: line["doc_id"])
    return [float(choice[0][0]) for line in lines for choice in line["resps"]]


@pytest.mark.slow
def test_every_kind_of_request(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = lm_eval(root, "all", "--limit", "2", "--apply_chat_template", tasks=",".join(TASKS))
    printed = capsys.readouterr().out
    assert set(found["results"]) == set(TASKS)
    assert all(task in printed for task in TASKS)
    assert found["results"]["smd_text"]["word_perplexity,none"] > 1
    assert 0 <= found["results"]["smd_choice"]["acc,none"] <= 1
    about = found["config"]["sm_diffusion"]
    assert (about["mc_samples"], about["sampler"], about["variant"]) == (4, "confidence_entropy", "mdlm")
    (file,) = (root / "all").rglob("samples_smd_copy_*.jsonl")
    sample = json.loads(file.read_text().splitlines()[0])
    prompt = sample["arguments"]["gen_args_0"]["arg_0"]
    assert prompt == "<|im_start|>user\nis 0 odd?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.slow
def test_an_interrupted_run_goes_on(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, calls = MonteCarloLikelihood._run, []

    def count(self: Any, rows: Any) -> None:
        calls.append(len(rows))
        original(self, rows)

    def stop(self: Any, rows: Any) -> None:
        if len(calls) == 5:
            raise KeyboardInterrupt
        count(self, rows)

    monkeypatch.setattr(MonteCarloLikelihood, "_run", count)
    whole = lm_eval(root, "whole")
    total = sum(calls)
    calls.clear()
    cache = ["--use_cache", str(root / "cache")]
    monkeypatch.setattr(MonteCarloLikelihood, "_run", stop)
    arguments = ["run", "--model", "sm_diffusion", "--model_args", f"pretrained={root / 'model'},mc_samples=4"]
    arguments += ["--tasks", "smd_choice", "--include_path", str(root / "tasks"), "--batch_size", "8", *cache]
    assert cli.main(["lm-eval", "--", *arguments]) == 130
    done = sum(calls)
    calls.clear()
    monkeypatch.setattr(MonteCarloLikelihood, "_run", count)
    resumed = lm_eval(root, "resumed", *cache)
    assert 0 < done < total
    assert total - done <= sum(calls) <= total - done + 8, "at most the batch in flight is made again"
    assert resumed["results"] == whole["results"]
    # Other neighbours in a batch: the same masks, sums in another order.
    assert answers(root, "resumed") == pytest.approx(answers(root, "whole"), abs=1e-4)
    assert len(answers(root, "whole")) == 18


@pytest.mark.slow
def test_mistakes_are_one_line(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["lm-eval", "--", "run", "--model", "sm_diffusion", "--model_args", "pretrained=gone.ckpt"]
    assert cli.main([*command, "--tasks", "smd_copy", "--include_path", str(root / "tasks")]) == 2
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(error) == 1
    assert error[0].startswith("error: gone.ckpt: no such file or folder")


def test_bad_model_arguments_and_no_options(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = register(sm_diffusion.load)
    assert register(sm_diffusion.load) is model, "registering twice is no mistake"
    with pytest.raises(UserError, match=r"model_args: pretrained is missing"):
        model()
    with pytest.raises(UserError, match=r"model_args: colour=red: unknown model argument"):
        model(pretrained=str(root / "model"), colour="red")
    assert cli.main(["lm-eval"]) == 2
    assert "no options" in capsys.readouterr().err
