"""Models that older code saved open, sample, are evaluated and are trained on as that code did (tests/golden/runs)."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import sm_diffusion
from sm_diffusion.app.evaluate import evaluate
from sm_diffusion.app.train import train
from sm_diffusion.config.compose import compose_config, restore_train_config
from sm_diffusion.denoisers.checkpoints.weights import read_provenance
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.predictor import HardMaskPredictor, SoftMaskPredictor

OLD = Path(__file__).parents[1] / "golden" / "runs"
PLACES = {
    "mdlm": "mdlm/checkpoints/last.ckpt",
    "soft": "soft",  # the run's folder
    "finetuned": "finetuned/checkpoints/last.ckpt",
    "adapter": "finetuned/adapter",
    "merged": "merged",
}
# What the folders do not say: the corpus.
CHATS = ("data=chat_files", "data.paths=[chats.jsonl]", "data.validation_fraction=0.2", "data.length=96",
         "data.max_validation_sequences=4", "data.cache_dir=cache")  # fmt: skip


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the old runs: the paths in them are relative."""
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    return tmp_path / "old"


@pytest.mark.parametrize("name", PLACES)
def test_they_open_and_say_what_they_said(
    here: Path, expected: dict[str, Any], name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in ("mdlm", "soft"):
        (here / "corpus.jsonl").unlink()
    model = sm_diffusion.load(PLACES[name])
    assert model.generate(num_samples=2, length=12, steps=6, seed=1) == expected[name]["texts"]
    assert model.length == expected[name]["length"]
    if "prompt" in expected[name]:
        assert model.chat is not None
        assert model.chat.prompt([{"role": "user", "content": "add 3"}]) == expected[name]["prompt"]
        assert model.stop_ids == {256}
    predictor = model.predictor
    if name == "mdlm":
        assert isinstance(predictor, HardMaskPredictor)
    else:
        assert isinstance(predictor, SoftMaskPredictor)
        assert (predictor.mixing, model.mixing) == (mixing.linear, "linear")
    lines = [line for line in capsys.readouterr().err.splitlines() if "assumed" in line]
    assert len(lines) == (name in ("adapter", "merged")), "one line says what is assumed, where anything is"
    assert all("does not record everything; assumed: linear mixing (soft_mask.mixing=...)" in line for line in lines)


def test_what_a_folder_does_not_record_can_be_given(here: Path) -> None:
    model = sm_diffusion.load("finetuned/adapter", overrides=["soft_mask.mixing=spherical"])
    assert isinstance(model.predictor, SoftMaskPredictor)
    assert (model.predictor.mixing, model.mixing) == (mixing.slerp_to_mean, "spherical")


@pytest.mark.parametrize("name", PLACES)
def test_their_perplexity_is_what_it_was(here: Path, expected: dict[str, Any], name: str) -> None:
    folder = name in ("adapter", "merged")
    arguments = [f"checkpoint={PLACES[name]}", "accelerator=cpu", "output_dir=eval", *(CHATS if folder else ())]
    metrics = evaluate(compose_config("eval", arguments))["metrics"]
    if folder or name == "finetuned":
        # Its number was that of the batches it was counted in; now it has a name of its own and no batch in it.
        once = evaluate(compose_config("eval", [*arguments, "batch_sequences=1", "overwrite=true"]))["metrics"]
        assert metrics["val/finetuning_loss"] == pytest.approx(once["val/finetuning_loss"], rel=1e-5)
        return
    for key, value in expected[name]["metrics"].items():
        assert metrics[key] == pytest.approx(value, rel=1e-6), key


@pytest.mark.parametrize("name", ["mdlm", "soft", "finetuned"])
def test_training_goes_on_from_them(here: Path, expected: dict[str, Any], name: str) -> None:
    path = f"{name}/checkpoints/last.ckpt"
    provenance = read_provenance(Path(path))
    assert provenance is not None
    config = restore_train_config(provenance)
    trainer = replace(config.trainer, max_steps=6)
    results = train(replace(config, trainer=trainer, ckpt_path=path, output_dir=f"more-{name}", init_from=None))
    assert results["metrics"]["val/nll"] == pytest.approx(expected[name]["nll_at_step_6"], rel=1e-6)
