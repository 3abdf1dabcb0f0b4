"""eval.py evaluator=humaneval and its siblings on a tiny model: sweeps, resuming, refusals, what results.json says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sm_diffusion.app.evaluate import evaluate
from sm_diffusion.app.open_model import Given, open_model
from sm_diffusion.app.open_tokenizer import tokenizer_of_data
from sm_diffusion.app.train import train
from sm_diffusion.app.validate import validate_eval
from sm_diffusion.config.compose import compose_config
from sm_diffusion.denoisers.adapters import peft
from sm_diffusion.evaluation.benchmarks import answers as answers_module
from sm_diffusion.evaluation.benchmarks.answers import AnswerPlan, AnswerStore, make_answers
from sm_diffusion.evaluation.benchmarks.table import differences
from sm_diffusion.evaluation.benchmarks.tasks import build_task
from sm_diffusion.evaluation.execution.executor import Executor
from sm_diffusion.types import UserError
from tests.helpers.chats import overrides
from tests.helpers.tasks import HUMANEVAL

ROWS = [
    {"question": f"What is {a} plus {b}?", "answer": f"It is {a + b}.\n#### {a + b}"}
    for a, b in ((1, 2), (30, 4), (5, 60), (7, 8), (900, 1))
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scores")


@pytest.fixture(scope="module")
def checkpoint(root: Path) -> Path:
    train(compose_config("train", overrides(root, "soft", "trainer.max_steps=2", "data.length=128")))
    return root / "soft/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def data(root: Path) -> Path:
    path = root / "gsm8k.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture(scope="module")
def code(root: Path) -> Path:
    path = root / "HumanEval.jsonl"
    rows = [{**HUMANEVAL, "task_id": f"HumanEval/{number}"} for number in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(checkpoint: Path, data: Path, out: Path, *extra: str, task: str = "gsm8k") -> list[str]:
    return [f"checkpoint={checkpoint}", "weights=raw", "accelerator=cpu", f"evaluator={task}", f"evaluator.path={data}",
            "evaluator.new_tokens=8", f"output_dir={out}", *extra]


def scored(*arguments: Any, **named: Any) -> dict[str, Any]:
    return evaluate(compose_config("eval", settings(*arguments, **named)))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def texts(folder: Path) -> dict[tuple[Any, ...], tuple[str, int, bool]]:
    return {
        (row["seed"], row["task_id"], row["sample"]): (row["completion"], row["nfe"], row["truncated"])
        for path in folder.rglob("records.jsonl")
        for row in lines(path)
    }


@pytest.fixture(scope="module")
def sweep(root: Path, checkpoint: Path, data: Path) -> dict[str, Any]:
    return scored(checkpoint, data, root / "sweep", "evaluator.feedback=both")


def test_a_sweep_with_and_without_feedback_is_one_table(
    root: Path, sweep: dict[str, Any], checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = sweep["scores"]
    assert [(row["model"], row["budget"], row["protocol"]["steps"]) for row in rows] == [
        (name, nfe, steps)
        for name in ("soft", "soft-without-feedback")
        for nfe, steps in (("1", 8), ("1/2", 4), ("1/4", 2))
    ]
    assert [row["protocol"]["feedback"] for row in rows] == [True] * 3 + [False] * 3
    # One pass a step, and one more for a row in which the mask token itself was drawn.
    assert all(steps <= row["nfe"] < steps + 1 for row, steps in zip(rows[:3], (8, 4, 2), strict=True))
    saved = json.loads((root / "sweep/results.json").read_text())
    assert saved["scores"] == json.loads(json.dumps(rows))
    assert saved["metrics"]["gsm8k/soft/nfe_1_2/nfe"] == rows[1]["nfe"]
    again = scored(checkpoint, data, root / "sweep", "evaluator.feedback=both")  # nothing is made again
    assert [row["seconds_per_answer"] for row in again["scores"]] == [row["seconds_per_answer"] for row in rows]
    printed = capsys.readouterr().err
    table = printed[printed.index("gsm8k, protocol official: 5 problems") :].splitlines()
    body = [line.split() for line in table if line.strip().startswith(("1 ", "1/"))]
    assert [cells[:3] for cells in body] == [
        [nfe, steps, name]
        for nfe, steps in (("1", "8"), ("1/2", "4"), ("1/4", "2"))
        for name in ("soft", "soft-without-feedback")
    ]
    assert "not as in the protocol: max_new_tokens = 8 (there 256)" in printed


def test_every_row_carries_its_protocol(sweep: dict[str, Any]) -> None:
    protocol = sweep["scores"][1]["protocol"]
    expected = {
        "task": "gsm8k", "protocol": "official", "style": "chat", "num_few_shot": 0, "stop_strings": [],
        "extraction": "first_block", "max_new_tokens": 8, "steps": 4, "nfe": "1/2", "order": "confidence, entropy",
        "temperature": 0.1, "top_p": 0.9, "seeds": [1], "num_samples": 1, "num_problems": 5, "precision": "32-true",
    }  # fmt: skip
    assert {name: protocol[name] for name in expected} == expected
    for name in ("prompt_sha256", "chat_template_sha256", "data_sha256", "checkpoint_sha256"):
        assert len(protocol[name]) == 64
    row = sweep["scores"][1]
    for name in ("empty", "truncated", "extraction_failures", "harness_errors"):
        assert protocol[name] == row[name]
    assert protocol["deviations"] == {"max_new_tokens": [8, 256], "precision": ["32-true", "bf16-mixed"]}
    record = lines(Path(row["records"]))[0]
    assert record["prompt"] == f"user: {ROWS[0]['question']}\nReason step by step, and put the final number in " + (
        "\\boxed{}.\nassistant: "
    )
    assert {"task_id", "completion", "passed", "nfe", "truncated", "seed", "extracted", "how"} <= set(record)


def test_a_killed_run_goes_on_and_gives_the_same(
    root: Path, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("evaluator.nfe=[1/2]", "evaluator.num_samples=2", "evaluator.seeds=[3,4]")
    whole = scored(checkpoint, data, root / "whole", *arguments, "batch_sequences=7")
    made: list[int] = []
    sample = answers_module._sample

    def dies(*given: Any) -> Any:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(1)
        return sample(*given)

    monkeypatch.setattr(answers_module, "_sample", dies)
    with pytest.raises(KeyboardInterrupt):
        scored(checkpoint, data, root / "parts", *arguments, "batch_sequences=3")
    monkeypatch.setattr(answers_module, "_sample", sample)
    file = next((root / "parts").rglob("answer-00000.jsonl"))
    assert len(lines(file)) == 9
    file.write_bytes(file.read_bytes()[:-30])  # and the last line torn
    again = scored(checkpoint, data, root / "parts", *arguments, "batch_sequences=3")
    assert len(lines(file)) == 20
    assert texts(root / "parts") == texts(root / "whole")
    for name in ("pass@1", "pass@1_std", "per_seed", "nfe", "truncated"):
        assert again["scores"][0][name] == whole["scores"][0][name], name
    # Fewer problems, seeds and samples are a part of more: nothing decides a text but seed, problem and sample.
    fewer = scored(checkpoint, data, root / "fewer", "evaluator.nfe=[1/2]", "evaluator.seeds=[4]", "evaluator.limit=2")
    assert fewer["scores"][0]["num_answers"] == 2
    found = texts(root / "fewer")
    assert found == {slot: text for slot, text in texts(root / "whole").items() if slot in found}


@pytest.mark.slow
def test_verdicts_are_kept_too(root: Path, checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, calls = root / "verdicts", []
    judge = answers_module.judge_answers

    def counted(task: Any, given: Any, executor: Any) -> Any:
        calls.append(len(given))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return judge(task, given, executor)

    monkeypatch.setattr(answers_module, "judge_answers", counted)
    monkeypatch.setattr(answers_module, "_CHUNK", 2)
    with pytest.raises(KeyboardInterrupt):
        scored(checkpoint, data, out, "evaluator.nfe=[1/4]")
    scored(checkpoint, data, out, "evaluator.nfe=[1/4]")
    assert calls == [2, 2, 2, 1]
    scored(checkpoint, data, out, "evaluator.nfe=[1/4]")
    assert calls == [2, 2, 2, 1]


def test_ranks_share_the_answers(root: Path, checkpoint: Path, data: Path, sweep: dict[str, Any]) -> None:
    config = compose_config("eval", settings(checkpoint, data, root / "ranks"))
    model = open_model(config.checkpoint, Given.of(config))
    sampler = config.sampler.with_total_steps(total=4, new_tokens=8).build(model.predictor)
    plan = AnswerPlan(
        task=build_task("gsm8k", data, rules="first_block"), tokenizer=model.tokenizer, chat=model.chat,
        limit=None, seeds=[1], num_samples=1, new_tokens=8, max_length=None, batch_sequences=2,
    )  # fmt: skip
    store = AnswerStore(root / "ranks", {"made": "by three"})
    made = [make_answers(store, sampler, replace(plan, rank=rank, world_size=3), label="") for rank in (2, 0, 1)]
    assert made == [1, 2, 2]
    joined = {tuple(slot): (a.completion, a.nfe, a.truncated) for slot, a in store.answers().items()}
    assert joined == texts(root / "sweep/records/soft/nfe_1_2")


@pytest.mark.slow
def test_records_of_another_checkpoint_or_protocol_are_refused(root: Path, checkpoint: Path, data: Path) -> None:
    out = root / "kept"
    scored(checkpoint, data, out, "evaluator.nfe=[1/4]")
    for extra, expected in (
        (["evaluator.protocol=ours"], "another extraction"),
        (["sampler.temperature=0.5"], "another temperature"),
        (["evaluator.new_tokens=4"], "another max_new_tokens"),
    ):
        with pytest.raises(UserError, match=rf"evaluator\.records_dir=.*holds answers of {expected}") as caught:
            scored(checkpoint, data, out, "evaluator.nfe=[1/4]", *extra)
        assert "\n" not in str(caught.value)
    other = root / "other/checkpoints/last.ckpt"
    train(compose_config("train", overrides(root, "other", "trainer.max_steps=1", "data.length=128")))
    with pytest.raises(UserError, match=r"holds answers of another checkpoint"):
        scored(other, data, out, "evaluator.nfe=[1/4]", "evaluator.label=soft")


def test_code_is_run_and_judged(root: Path, checkpoint: Path, code: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's own answers fail; where the sampler is made to give the solution, they pass."""
    try:
        Executor(allow_code_execution=True)
    except UserError as error:
        pytest.skip(str(error))
    allow = ("evaluator.allow_code_execution=true", "evaluator.nfe=[1]", "evaluator.executor.workers=1",
             "evaluator.style=completion")
    out = scored(checkpoint, code, root / "code", *allow, task="humaneval")["scores"][0]
    assert out["pass@1"] == 0
    assert out["executor"]["limits"]["cpu_seconds"] == 10
    sample = answers_module._sample

    def solve(*given: Any) -> Any:
        return [replace(row, completion="    return a + b\n") for row in sample(*given)]

    monkeypatch.setattr(answers_module, "_sample", solve)
    arguments = (*allow, "evaluator.num_samples=2", "evaluator.pass_at=[1,2]")
    out = scored(checkpoint, code, root / "solved", *arguments, task="humaneval")["scores"][0]
    assert (out["pass@1"], out["pass@2"], out["harness_errors"]) == (1, 1, 0)
    assert out["verdicts"] == {"passed": 4}


@pytest.mark.slow
def test_compare_puts_an_earlier_run_into_the_table(
    root: Path, sweep: dict[str, Any], checkpoint: Path, data: Path, code: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = root / "sweep/results.json"
    scored(checkpoint, data, root / "beside", "evaluator.nfe=[1/2]", "evaluator.label=this", "evaluator.protocol=ours",
           f"evaluator.compare=[{earlier}]")  # fmt: skip
    printed = capsys.readouterr().err
    assert "differs: extraction: search | first_block" in printed
    assert printed.count("soft-without-feedback") == 3
    assert differences(sweep["scores"]) == []
    with pytest.raises(UserError, match=r"evaluator\.compare=.*holds no scores of humaneval"):
        scored(checkpoint, code, root / "bad", f"evaluator.compare=[{earlier}]", "evaluator.allow_code_execution=true",
               task="humaneval")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("extra", [
    ["sampler.block_length=4"],
    ["sampler.block_length=4", "sampler.cache=prefix"],
    ["sampler.block_length=4", "sampler.cache=dual", "sampler.refresh_steps=1"],
    ["sampler=first_hitting"],
    ["sampler=confidence_threshold", "evaluator.nfe=[]"],
])  # fmt: skip
def test_every_kind_of_sampler(root: Path, checkpoint: Path, data: Path, extra: list[str]) -> None:
    out = scored(checkpoint, data, root / f"sampler-{len(list(root.iterdir()))}", "evaluator.limit=2", *extra)
    assert all(row["num_answers"] == 2 and row["nfe"] <= 9 for row in out["scores"])
    if "evaluator.nfe=[]" not in extra:
        assert all(steps <= row["nfe"] <= steps + 1 for row, steps in zip(out["scores"], (8, 4, 2), strict=True))
    assert out["scores"][0]["protocol"]["deviations"]


@pytest.mark.slow
def test_folders_give_the_answers_of_the_checkpoint(root: Path, checkpoint: Path, data: Path) -> None:
    """An adapter folder on its base, and the merged model: the same texts as the run's checkpoint."""
    from sm_diffusion.cli import main as cli

    assert cli.main(["convert", "merge", str(root / "soft/adapter"), str(root / "full"), "--dtype", "float32"]) == 0
    assert peft.read_soft_mask(root / "full") is not None
    own = ("data=chat_files", f"data.paths=[{root / 'chats.jsonl'}]", "evaluator.nfe=[1]", "evaluator.limit=3")
    found = []
    for name, path in (("file", checkpoint), ("adapter", root / "soft/adapter"), ("full", root / "full")):
        out = scored(path, data, root / f"from-{name}", *own)
        assert out["scores"][0]["protocol"]["feedback"] is True
        found.append(texts(root / f"from-{name}"))
    assert found[0] == found[1] == found[2]
    with pytest.raises(UserError, match=r"holds no tokenizer_config\.json"):
        scored(root / "full", data, root / "no-tokenizer")
    shutil.copytree(root / "full", root / "bare", ignore=shutil.ignore_patterns("config.json"))
    with pytest.raises(UserError, match=r"neither a model folder \(config\.json\)"):
        scored(root / "bare", data, root / "no-model", *own)


def test_refused_before_anything_is_loaded(checkpoint: Path, code: Path, root: Path) -> None:
    given = settings(checkpoint, code, root / "never", "evaluator.limit=0", task="humaneval")
    with pytest.raises(UserError, match=r"(?s)2 problems.*limit=0: must be positive\n.*allow_code_execution=false"):
        validate_eval(compose_config("eval", given))


def test_unknown_task_lists_the_tasks() -> None:
    with pytest.raises(UserError, match=r"evaluator/humanevil.*gsm8k; humaneval; humaneval_plus; math500; mbpp; mb"):
        compose_config("eval", ["checkpoint=x", "evaluator=humanevil"])


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["evaluator.new_tokens=5000"], r"the prompt of gsm8k/\d has .* more than the 128 the model takes; set eval"),
        (["evaluator.style=chat_prefix"], r"style: gsm8k has no style 'chat_prefix'"),
    ],
)
def test_what_shows_only_with_the_model(
    root: Path, checkpoint: Path, data: Path, extra: list[str], expected: str
) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        scored(checkpoint, data, root / "late", *extra)
    assert "\n" not in str(caught.value)


def test_a_missing_field_names_file_and_line(root: Path, checkpoint: Path) -> None:
    path = root / "broken.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps({"question": "?"}) + "\n")
    with pytest.raises(UserError, match=r"broken\.jsonl: line 2: missing field answer; fields found: question"):
        scored(checkpoint, path, root / "broken")


def test_base_models_get_completions_and_cannot_chat(root: Path, data: Path) -> None:
    assert tokenizer_of_data(compose_config("eval", ["checkpoint=x", "data=python_code"]).data, None).chat is None
    char = tokenizer_of_data(compose_config("eval", ["checkpoint=x", "data=text8", "data.path=x"]).data, None)
    plan = AnswerPlan(
        task=build_task("gsm8k", data, style="completion", rules="first_block"), tokenizer=char.tokenizer, chat=None,
        limit=None, seeds=[1], num_samples=1, new_tokens=8, max_length=None, batch_sequences=2,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"CharTokenizer\) cannot spell"):
        plan.prompt_ids()
