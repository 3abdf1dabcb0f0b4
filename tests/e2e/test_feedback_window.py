"""Training with the extra pass in a part of the steps."""

from __future__ import annotations

import pytest
import torch

from sm_diffusion.config.compose import compose_config


def test_training_spends_the_extra_pass_inside_the_window_only(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sm_diffusion.app.train import train
    from tests.helpers.runs import write_corpus

    root = tmp_path_factory.mktemp("window")
    write_corpus(root / "corpus")
    config = compose_config(
        "train",
        [
            *("data=text_files", f"data.paths=[{root / 'corpus'}]", "data.tokenizer.kind=char", "debug=two_steps"),
            *("model.width=16", "model.num_blocks=1", "model.num_heads=2", "model.cond_width=8"),
            *("trainer.max_steps=5", "variant.p_sm=1.0", "variant.start_step=1", "variant.stop_step=3"),
            *(f"output_dir={root / 'run'}", f"data.cache_dir={root / 'cache'}", "data.validation_fraction=0.2"),
            *("trainer.val_every_steps=0", "callbacks.plots=false"),
        ],
    )
    out = train(config)
    assert out["compute"]["steps"] == 5
    assert out["compute"]["forward_passes"] == 5 + 2
    assert torch.isfinite(torch.tensor(out["metrics"]["val/nll"]))
