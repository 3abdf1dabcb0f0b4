"""Whole runs on a tiny corpus: what is written, resumed, counted, and how runs end that cannot go on."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from sm_diffusion.app.evaluate import evaluate
from sm_diffusion.config.compose import compose_config
from sm_diffusion.denoisers.checkpoints.weights import read_weights
from sm_diffusion.types import UserError
from tests.helpers.runs import assert_same_checkpoint, overrides, run


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def soft(root: Path) -> dict[str, Any]:
    return run(root, "soft")






def test_run_folder(root: Path, soft: dict[str, Any]) -> None:
    folder = root / "soft"
    for name in ("config.yaml", "environment.json", "parameters.txt", "results.json", "checkpoints/last.ckpt"):
        assert (folder / name).exists(), name
    assert len(list((folder / "checkpoints").glob("best-*.ckpt"))) == 1
    results = json.loads((folder / "results.json").read_text())
    assert results["metrics"]["val/ppl"] == pytest.approx(math.exp(results["metrics"]["val/nll"]))
    assert results["metrics"]["val/ppl_without_feedback"] > 1
    with next((folder / "metrics").rglob("metrics.csv")).open() as file:
        rows = list(csv.DictReader(file))
    assert {"train/loss", "val/nll", "omega/s", "compute/flops"} <= set(rows[0])
    assert [row["step"] for row in rows if row["train/loss"]] == ["2", "4", "6"]


def test_compute_is_counted_exactly(soft: dict[str, Any]) -> None:
    compute = soft["compute"]
    assert compute["steps"] == 6
    assert compute["tokens"] == 6 * 8 * 16
    assert 6 <= compute["forward_passes"] <= 12
    extra = compute["forward_passes"] - 6
    # 2 FLOPs a multiply-add: 12 D^2 a block, attention 4 L D, head at the mean masked share.
    share = 0.999 * (0.001 + 1.0) / 2
    forward = 8 * 16 * (2 * 12 * 16**2 + 4 * 16 * 16 + share * 2 * 16 * 28)
    assert compute["flops"] == pytest.approx(forward * (6 * 3 + extra), rel=1e-6)


def test_resumed_run_is_bitwise_the_uninterrupted_one(root: Path) -> None:
    """Stopped in the middle of an epoch, with dropout, accumulation, feedback coin, EMA and omegas in play."""
    settings = ("model.dropout=0.2", "data.micro_batch_sequences=4", "trainer.val_every_steps=4")
    run(root, "whole", *settings, "trainer.max_steps=11")
    run(root, "parts", *settings, "trainer.max_steps=5")
    (root / "parts" / "results.json").unlink()
    run(root, "parts", *settings, "trainer.max_steps=11", "ckpt_path=last")
    assert_same_checkpoint(root / "whole/checkpoints/last.ckpt", root / "parts/checkpoints/last.ckpt")
    whole = json.loads((root / "whole/results.json").read_text())
    parts = json.loads((root / "parts/results.json").read_text())
    assert whole["metrics"] == parts["metrics"]
    for key in ("steps", "forward_passes", "tokens", "flops"):
        assert whole["compute"][key] == parts["compute"][key]


def test_accumulation_does_not_change_the_run(root: Path) -> None:
    one = run(root, "one-batch", "data.micro_batch_sequences=8")
    four = run(root, "four-parts", "data.micro_batch_sequences=2")
    assert one["metrics"]["val/nll"] == pytest.approx(four["metrics"]["val/nll"], rel=1e-6)
    assert one["omegas"]["omega_s"] == pytest.approx(four["omegas"]["omega_s"], rel=1e-5)


def test_equal_compute_stops_earlier(root: Path, soft: dict[str, Any]) -> None:
    binary = run(root, "binary", "variant=mdlm", "trainer.max_steps=6")
    assert binary["compute"]["forward_passes"] == 6
    assert binary["omegas"] is None
    limited = run(root, "limited", f"trainer.max_flops={binary['compute']['flops']}", "variant.p_sm=1.0")
    assert limited["compute"]["steps"] == 5  # ceil(6 * 3 / 4)
    assert limited["compute"]["flops"] >= binary["compute"]["flops"]


def test_soft_masking_starts_from_a_plain_model(root: Path) -> None:
    run(root, "start", "variant=mdlm", "trainer.max_steps=3")
    start = root / "start/checkpoints/last.ckpt"
    continued = run(root, "continued", f"init_from={start}", "trainer.max_steps=1", "optim.lr=1e-12")
    assert continued["omegas"]["omega_s"] == pytest.approx(0.27, abs=0.01)
    before, after = (
        read_weights(path, weights="raw").denoiser for path in (start, root / "continued/checkpoints/last.ckpt")
    )
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, msg=name)


def test_eval_prints_the_number_that_fit_printed(root: Path, soft: dict[str, Any], capsys: Any) -> None:
    checkpoint = root / "soft/checkpoints/last.ckpt"
    for batch in (64, 5):
        out = evaluate(
            compose_config(
                "eval", [f"checkpoint={checkpoint}", f"batch_sequences={batch}", f"output_dir={root / 'eval'}"]
            )
        )
        for name in ("val/nll", "val/nll_without_feedback", "val/bits_per_byte"):
            assert out["metrics"][name] == pytest.approx(soft["metrics"][name], rel=1e-6), name
    raw = evaluate(
        compose_config("eval", [f"checkpoint={checkpoint}", "weights=raw", f"output_dir={root / 'eval'}"])
    )
    assert raw["metrics"]["val/nll"] != pytest.approx(soft["metrics"]["val/nll"], rel=1e-6)
    assert "val/ppl" in capsys.readouterr().out


def test_nan_loss_stops_and_names_the_last_good_checkpoint(root: Path) -> None:
    with pytest.raises(UserError, match=r"step \d+: the training loss or the weights are not finite; .*checkpoint"):
        run(root, "nan", "optim.lr=1e25", "optim.clip_norm=0", "trainer.max_steps=40",
            "callbacks.checkpoint.every_steps=1", "trainer.val_every_steps=0")
    run(root, "nan", "ckpt_path=null", "overwrite=true", "trainer.max_steps=3", "callbacks.checkpoint.every_steps=1")
    with pytest.raises(UserError, match=r"not finite; the last good checkpoint is .*last\.ckpt"):
        run(root, "nan", "ckpt_path=last", "optim.lr=1e25", "optim.clip_norm=0", "trainer.max_steps=40",
            "callbacks.checkpoint.every_steps=1", "trainer.val_every_steps=0")
    for path in (root / "nan/checkpoints").glob("*.ckpt"):
        assert all(torch.isfinite(v).all() for v in read_weights(path, weights="raw").denoiser.values())


def test_an_earlier_run_is_not_overwritten(root: Path, soft: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"output_dir=.*holds an earlier run; set ckpt_path=last"):
        run(root, "soft")


def test_a_checkpoint_of_another_shape_lists_what_differs(root: Path, soft: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"does not fit this configuration: .*\(28, 16\) there, \(28, 24\) here"):
        run(root, "soft", "ckpt_path=last", "model.width=24")
    with pytest.raises(UserError, match="does not fit this model"):
        run(root, "wider", f"init_from={root / 'soft/checkpoints/last.ckpt'}", "model.width=24")


def test_top_k_beyond_the_vocabulary(root: Path) -> None:
    with pytest.raises(UserError, match=r"soft_mask\.top_k=28: the vocabulary has 27 tokens"):
        run(root, "huge-k", "soft_mask.top_k=28")


def test_evaluating_a_missing_or_truncated_checkpoint(root: Path, soft: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"checkpoint=.*: no such file"):
        evaluate(compose_config("eval", ["checkpoint=nothing.ckpt"]))
    cut = root / "cut.ckpt"
    cut.write_bytes((root / "soft/checkpoints/last.ckpt").read_bytes()[:5000])
    with pytest.raises(UserError, match="truncated"):
        evaluate(compose_config("eval", [f"checkpoint={cut}"]))


@pytest.mark.parametrize("extra", [("soft_mask.full_vocabulary=true",), ("soft_mask.mixing=spherical",),
                                   ("soft_mask.learnable=false",), ("schedule=cosine",), ("objective.times=uniform",)])
def test_every_option_trains(root: Path, extra: tuple[str, ...]) -> None:
    out = run(root, "option-" + extra[0].replace("=", "-"), *extra, "trainer.max_steps=3", "trainer.val_every_steps=0")
    assert math.isfinite(out["metrics"]["val/nll"])
    if extra[0] == "soft_mask.learnable=false":
        assert out["omegas"]["omega_s"] == pytest.approx(0.27, abs=1e-5)


def test_overrides_helper_is_valid(root: Path) -> None:
    assert compose_config("train", overrides(root, "x")).data.length == 16
