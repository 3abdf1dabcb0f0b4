"""A package outside `sm_diffusion` adds components through the entry point, without editing any file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = Path(__file__).parent / "example"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder whose `site` looks like site-packages after `pip install` of the example."""
    root = tmp_path_factory.mktemp("plugin")
    info = root / "site" / "smd_example-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: smd-example\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[sm_diffusion.plugins]\nsmd_example = smd_example\n")
    (root / "site" / "smd_example").symlink_to(EXAMPLE / "smd_example")
    return root


def call(root: Path, *words: str, status: int = 0, site: Path | None = None) -> str:
    """Output of a program run where the plug-in is installed."""
    path = os.pathsep.join([str(site or root / "site"), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


def train(root: Path, *words: str, status: int = 0) -> str:
    shared = [
        "schedule=squared", "soft_mask=fixed", "soft_mask.share=0.4", "optim=small", "name=mine",
        "model=bag_of_words", "model.width=8", "data=counting", "data.max_validation_sequences=16",
        "data.cache_dir=cache",
        "+callbacks.extra.count_steps.word=counted", "+logger.extra.json_lines={}",
        "trainer.val_every_steps=0", "trainer.log_every_steps=1", "trainer.accelerator=cpu", "callbacks.plots=false",
    ]  # fmt: skip
    return call(root, str(ROOT / "train.py"), *shared, *words, status=status)


@pytest.fixture(scope="module")
def checkpoint(root: Path) -> Path:
    train(root, "trainer.max_steps=2")
    return root / "runs" / "mine" / "checkpoints" / "last.ckpt"


def test_its_components_train_by_name(root: Path, checkpoint: Path) -> None:
    folder = checkpoint.parents[1]
    assert (folder / "steps.txt").read_text() == "counted 2"
    logged = [json.loads(line) for line in (folder / "numbers.jsonl").read_text().splitlines()]
    assert any("train/loss" in line for line in logged)
    config = (folder / "config.yaml").read_text()
    for words in ("name: squared", "share: 0.4", "mixing: half", "word: counted"):
        assert words in config


def test_it_resumes_opens_and_samples(root: Path, checkpoint: Path) -> None:
    train(root, "trainer.max_steps=4", "ckpt_path=last")
    assert (checkpoint.parents[1] / "steps.txt").read_text() == "counted 4"
    script = (
        "import sm_diffusion, sys\n"
        "model = sm_diffusion.load(sys.argv[1])\n"
        "predictor = model.predictor\n"
        "print(type(predictor.denoiser).__name__, type(predictor.soft_mask).__name__, type(model.schedule).__name__)\n"
        "print(len(model.generate(num_samples=2, sampler='right_to_left')))\n"
    )
    assert call(root, "-c", script, str(checkpoint)).split() == ["BagOfWords", "FixedMask", "Squared", "2"]


def test_it_is_evaluated(root: Path, checkpoint: Path) -> None:
    call(root, str(ROOT / "eval.py"), f"checkpoint={checkpoint}", "output_dir=scores", "sampler=right_to_left")
    assert json.loads((root / "scores" / "results.json").read_text())["metrics"]["val/ppl"] > 1


def test_its_evaluator_evaluates(root: Path, checkpoint: Path) -> None:
    words = (f"checkpoint={checkpoint}", "accelerator=cpu", "evaluator=masked_loss")
    call(root, str(ROOT / "eval.py"), *words, "output_dir=mine", "evaluator.factor=3")
    call(root, str(ROOT / "eval.py"), *words[:2], "output_dir=theirs")
    mine, theirs = (json.loads((root / name / "results.json").read_text()) for name in ("mine", "theirs"))
    assert mine["name"] == "masked_loss"
    assert mine["metrics"]["scaled_nll"] == pytest.approx(3 * theirs["metrics"]["val/nll_without_feedback"])
    assert mine["metrics"]["parameters"] > 0
    out = call(root, str(ROOT / "eval.py"), *words, "evaluator.factor=0", status=2)
    assert "error: evaluator.factor=0.0: must be positive\n" in out


def test_its_names_are_listed(root: Path) -> None:
    out = call(root, "-m", "sm_diffusion.cli.main", "config", "--groups")
    for name in (
        "squared", "fixed", "half", "bag_of_words", "counting", "right_to_left", "count_steps", "json_lines",
        "masked_loss",
    ):
        line = next(line for line in out.splitlines() if line.split()[:1] == [name])
        assert "[smd_example]" in line


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("schedule.eps=2", "error: schedule.eps=2.0: must lie in (0, 1)\n"),
        ("soft_mask.share=2", "error: soft_mask.share=2.0: must lie in (0, 1)\n"),
        ("soft_mask.shar=0.5", "error: Could not override 'soft_mask.shar'; Key 'shar' not in 'FixedMaskSettings'; "
         "full_key: soft_mask.shar; list the known keys with: smd config\n"),
        ("soft_mask.mixing=quarter", "error: soft_mask.mixing=quarter: unknown; choose one of linear, "),
        ("+callbacks.extra.count_stepz={}", "error: callbacks.extra=count_stepz: unknown (did you mean count_steps?); "
         "choose one of count_steps\n"),
        ("+callbacks.extra.count_steps.words=a", "error: callbacks.extra.count_steps.words: unknown key "
         "(did you mean word?)\n"),
    ],
)  # fmt: skip
def test_its_mistakes_are_one_line(root: Path, word: str, expected: str) -> None:
    out = train(root, "trainer.max_steps=2", "name=never", word, status=2)
    assert expected in out
    assert "Traceback" not in out


def test_a_plug_in_that_cannot_be_loaded_is_one_line(root: Path, tmp_path: Path) -> None:
    info = tmp_path / "broken-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[sm_diffusion.plugins]\nbroken = broken_plugin\n")
    out = call(root, "-m", "sm_diffusion.cli.main", "config", status=2, site=tmp_path)
    assert out == (
        "error: plug-in broken (broken_plugin): cannot be loaded (ModuleNotFoundError: No module named "
        "'broken_plugin'); mend it, or uninstall it\n"
    )
