"""From a trained checkpoint to texts and their scores: Python API, `smd sample`, `eval.py evaluator=generative`."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

import sm_diffusion
from sm_diffusion.app.evaluate import evaluate
from sm_diffusion.app.validate import validate_eval
from sm_diffusion.cli import main as cli
from sm_diffusion.config.compose import compose_config
from sm_diffusion.evaluation.generation.samples import GenerationCache
from sm_diffusion.paths import CONF
from sm_diffusion.types import UserError
from tests.helpers.judges import save_tiny_judge
from tests.helpers.runs import run

ROOT = Path(__file__).parents[2]
SAMPLERS = sorted(path.stem for path in (CONF / "sampler").glob("*.yaml"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generation")


@pytest.fixture(scope="module")
def checkpoint(root: Path) -> Path:
    run(root, "soft", "trainer.max_steps=3")
    return root / "soft/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return sm_diffusion.load(checkpoint)


@pytest.fixture(scope="module")
def judge(root: Path) -> Path:
    return save_tiny_judge(root / "judge")


def generative(checkpoint: Path, root: Path, *extra: str) -> dict[str, Any]:
    settings = [f"checkpoint={checkpoint}", "evaluator=generative", "evaluator.num_samples=5", "sampler.num_steps=4",
                "evaluator.judge=null", "accelerator=cpu", f"output_dir={root / 'eval'}", *extra]
    return evaluate(compose_config("eval", settings))


def texts_of(folder: Path) -> list[str]:
    key = json.loads((folder / "samples.json").read_text())
    return [sample.text for sample in GenerationCache(folder, key).read()]


def test_texts_do_not_depend_on_their_batch(model: Any) -> None:
    found = []
    for size in (1, 2, 5):
        batched = type(model)(**{**vars(model), "batch_sequences": size})
        found.append(batched.generate(num_samples=5, steps=6, seed=3))
        prompted = batched.generate(["the c[MASK]t", "a [MASK][MASK] mat [MASK]"], num_samples=2, steps=6)
        found[-1] += prompted
        assert [len(text) for text in prompted] == [7, 7, 10, 10]
        assert all(text.startswith("the c") and text.endswith("t") for text in prompted[:2])
    assert found[0] == found[1] == found[2]
    assert len(set(found[0][:5])) == 5
    assert all(len(text) == 16 and "_" not in text for text in found[0][:5])
    assert model.generate(num_samples=5, steps=6, seed=4) != found[0][:5]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_generates(model: Any, sampler: str) -> None:
    steps = None if sampler in ("first_hitting", "confidence_threshold") else 5
    texts = model.generate(["the "], num_samples=2, sampler=sampler, steps=steps)
    assert all(text.startswith("the ") and len(text) == 16 for text in texts)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"prompts": ["a" * 16]}, r"prompt 0 has 16 tokens and leaves no room .*the model takes 16"),
        ({"prompts": ["a" * 16 + "[MASK]"]}, r"prompt 0 has 17 tokens, the model takes 16"),
        ({"prompts": [[1, 27, 2]]}, r"prompt 0 holds the mask token 27"),
        ({"prompts": [[1, 99]]}, r"prompt 0 holds token 99"),
        ({"sampler": "nope"}, r"sampler/nope.*ancestral.*first_hitting.*remdm_cap"),
        ({"steps": 0}, r"sampler\.num_steps=0: must be >= 1"),
        ({"steps": 4, "sampler": "first_hitting"}, r"no fixed number of steps"),
        ({"temperature": -1.0}, r"sampler\.temperature=-1\.0"),
        ({"top_p": 0.0}, r"sampler\.top_p=0\.0"),
        ({"length": 17}, r"length=17: .*the model's length 16"),
        ({"num_samples": 0}, r"num_samples=0"),
    ],
)
def test_bad_requests_are_one_line(model: Any, arguments: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        model.generate(**arguments)
    assert "\n" not in str(caught.value)


def test_loading_what_is_not_there(root: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.ckpt: no such file"):
        sm_diffusion.load(root / "gone.ckpt")


def test_samples_are_made_once_and_a_killed_run_goes_on(root: Path, checkpoint: Path) -> None:
    whole, parts = root / "whole", root / "parts"
    first = generative(checkpoint, root, f"evaluator.samples_dir={whole}", "batch_sequences=5")
    generative(checkpoint, root, f"evaluator.samples_dir={parts}", "evaluator.num_samples=3", "batch_sequences=2")
    file = parts / "part-00000.jsonl"
    file.write_bytes(file.read_bytes()[:-40])  # killed in the middle of a line
    assert len(texts_of(parts)) == 2
    again = generative(checkpoint, root, f"evaluator.samples_dir={parts}", "batch_sequences=1")
    assert texts_of(parts) == texts_of(whole)
    for name in ("gen/entropy", "gen/distinct_2", "gen/repetition_4", "gen/nfe"):
        assert again["metrics"][name] == first["metrics"][name], name
    before = file.read_bytes()
    assert generative(checkpoint, root, f"evaluator.samples_dir={parts}")["metrics"] == again["metrics"]
    assert file.read_bytes() == before


def test_the_command_scores_a_frontier_with_mauve(
    root: Path, checkpoint: Path, judge: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python eval.py evaluator=generative ...` as typed, to its end: what it prints and what it leaves."""
    pytest.importorskip("mauve", reason="mauve-text is not installed (pip install 'sm-diffusion[eval]')")
    out = root / "command"
    command = ["eval.py", "evaluator=generative", f"checkpoint={checkpoint}", f"evaluator.judge={judge}",
               "evaluator.mauve=true", f"evaluator.mauve_features={judge}", "evaluator.num_samples=24",
               "evaluator.mauve_seeds=[25,26]", "evaluator.temperatures=[0.5,1.0]", "sampler.num_steps=4",
               "accelerator=cpu", f"output_dir={out}"]
    monkeypatch.setattr(sys, "argv", command)
    runpy.run_path(str(ROOT / "eval.py"), run_name="__main__")
    printed, said = capsys.readouterr()
    metrics = json.loads((out / "results.json").read_text())["metrics"]
    for temperature in ("0.5", "1"):
        for name in ("ppl", "entropy", "distinct_2", "repetition_4", "mauve", "nfe", "tokens_per_second"):
            assert f"gen/{name}@{temperature}" in metrics
            assert f"gen/{name}@{temperature} " in printed
    assert 0 < metrics["gen/mauve@1"] <= 1
    assert said.count("n = 24 samples, 24 references, 2 clusters") == 2
    assert "25: " in said
    assert "26: " in said
    assert "24 made now" in said
    assert (out / "frontier.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(sys, "argv", [*command, "evaluator.num_samples=12"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "eval.py"), run_name="__main__")
    assert "MAUVE of n = 12 texts would have 2 clusters" in capsys.readouterr().err


def test_samples_of_other_ranks_join(root: Path, checkpoint: Path, model: Any) -> None:
    from sm_diffusion.app.model import named_sampler
    from sm_diffusion.evaluation.generation.samples import generate_into

    settings = named_sampler("remdm_cap", ["sampler.num_steps=4"])
    found = []
    for world_size in (1, 3):
        cache = GenerationCache(root / f"world-{world_size}", {"seed": 7})
        for rank in reversed(range(world_size)):
            generate_into(
                cache, model.sampler(settings), count=5, length=16, decode=model.tokenizer.decode,
                batch_sequences=2, rank=rank, world_size=world_size,
            )
        found.append([(sample.index, sample.ids, sample.nfe) for sample in cache.read()])
    assert found[0] == found[1]


def test_samples_of_another_checkpoint_are_refused(root: Path, checkpoint: Path) -> None:
    folder = root / "kept"
    generative(checkpoint, root, f"evaluator.samples_dir={folder}")
    run(root, "other", "trainer.max_steps=2")
    with pytest.raises(UserError, match=r"samples_dir=.*holds samples of another checkpoint") as caught:
        generative(
            root / "other/checkpoints/last.ckpt", root, f"evaluator.samples_dir={folder}", "overwrite=true"
        )
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"samples_dir=.*holds samples of another sampler.num_steps"):
        generative(checkpoint, root, f"evaluator.samples_dir={folder}", "sampler.num_steps=5")


def test_frontier_over_temperatures(root: Path, checkpoint: Path, judge: Path) -> None:
    out = generative(checkpoint, root, f"evaluator.judge={judge}", "evaluator.temperatures=[0.5,1.0]",
                     f"evaluator.samples_dir={root / 'frontier'}")
    metrics = out["metrics"]
    assert {"gen/ppl@0.5", "gen/ppl@1", "gen/entropy@0.5", "gen/entropy@1"} <= set(metrics)
    assert [point["temperature"] for point in out["protocol"]["frontier"]] == [0.5, 1.0]
    assert (root / "eval/frontier.png").stat().st_size > 1000
    single = generative(checkpoint, root, f"evaluator.judge={judge}", f"evaluator.samples_dir={root / 'frontier/T1'}",
                        "sampler.temperature=1.0", "evaluator.judge_batch_sequences=1")
    assert single["metrics"]["gen/ppl"] == pytest.approx(metrics["gen/ppl@1"], rel=1e-4)


def test_zero_shot_over_several_sources(root: Path, checkpoint: Path) -> None:
    files = sorted((root / "corpus").glob("*.txt"))[:4]
    for index, part in enumerate((files[:2], files[2:])):
        (root / f"source{index}.txt").write_text("\n".join(path.read_text() for path in part))
    settings = [f"checkpoint={checkpoint}", "evaluator=zero_shot", "accelerator=cpu", f"output_dir={root / 'zero'}",
                f"evaluator.sources=[{root / 'source0.txt'},{root / 'source1.txt'}]"]
    found = [evaluate(compose_config("eval", [*settings, f"batch_sequences={size}"]))["metrics"] for size in (64, 3)]
    for source in ("source0", "source1"):
        for suffix in ("", "_without_feedback"):
            name = f"zero_shot/{source}/ppl{suffix}"
            assert found[0][name] == pytest.approx(found[1][name], rel=1e-5)
    settings[-1] = "evaluator.sources=[nowhere.txt]"
    with pytest.raises(UserError, match=r"evaluator\.sources=nowhere\.txt: neither a data option \(.*python_text"):
        evaluate(compose_config("eval", settings))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("evaluator.num_samples=0", r"evaluator\.num_samples=0: must be positive"),
        ("sampler.num_steps=0", r"sampler\.num_steps=0: must be >= 1"),
        ("sampler.top_p=2", r"sampler\.top_p=2\.0"),
        ("sampler.strength=steep", r"sampler\.strength=steep: unknown .*stepwise"),
        ("evaluator.temperatures=[-1]", r"evaluator\.temperatures=\[-1\.0\]"),
    ],
)
def test_bad_settings_are_one_line(checkpoint: Path, override: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected) as caught:
        validate_eval(compose_config("eval", [f"checkpoint={checkpoint}", "evaluator=generative", override]))
    assert "\n" not in str(caught.value)


def test_a_missing_judge_stops_before_sampling(root: Path, checkpoint: Path) -> None:
    with pytest.raises(UserError, match=r"evaluator\.judge=gone\.gguf: no such file"):
        generative(checkpoint, root, "evaluator.judge=gone.gguf", f"evaluator.samples_dir={root / 'never'}")
    assert not (root / "never").exists()


def test_command_line(root: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recording = root / "rec.json"
    command = ["sample", str(checkpoint), "--steps", "4", "--num", "2", "--device", "cpu"]
    assert cli.main([*command, "--sampler", "remdm_cap", "sampler.eta=0.5", "--json", str(recording)]) == 0
    printed = capsys.readouterr().out
    data = json.loads(recording.read_text())
    assert [row["text"] for row in data["rows"]] == printed.split("\n")[1:4:2]
    assert data["sampler"]["eta"] == 0.5
    states = {data["states"][code] for row in data["rows"] for frame in row["frames"] for code in frame["state"]}
    assert {"masked", "soft", "drawn", "remasked"} <= states
    assert cli.main(["view", str(recording), str(recording), "--out", str(root / "page.html")]) == 0
    assert (root / "page.html").stat().st_size > 5000
    assert cli.main(["sample", str(checkpoint), "--infill", "the [MASK][MASK] sat"]) == 0
    capsys.readouterr()
    for wrong in (["--prompt", "a [MASK]"], ["--infill", "a b"], ["nonsense"], ["--sampler", "nope"]):
        assert cli.main(["sample", str(checkpoint), *wrong]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
