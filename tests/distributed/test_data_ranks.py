from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.data import tiny_datamodule

SCRIPT = """
import json, sys
from pathlib import Path
import lightning.pytorch as pl
import torch
from tests.helpers.data import tiny_datamodule


class Recorder(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.train_rows, self.validation_rows = [], []

    def training_step(self, batch, _):
        self.train_rows.append([batch.ids_BL.tolist(), batch.rows_B.tolist()])
        return self.weight * batch.ids_BL.float().mean()

    def validation_step(self, batch, _):
        self.validation_rows.append(batch.rows_B.tolist())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


folder = Path(sys.argv[1])
data = tiny_datamodule(folder / "cache", global_batch_sequences=8)
data.prepare()  # in both processes at once
module = Recorder()
trainer = pl.Trainer(
    accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, accumulate_grad_batches=2, logger=False,
    enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
)  # use_distributed_sampler is on by default: it must not matter
trainer.fit(module, data)
alone = tiny_datamodule(folder / "cache", global_batch_sequences=8)
alone.prepare()
without_trainer = [batch.rows_B.tolist() for batch in alone.val_dataloader()]
(folder / f"rank{trainer.global_rank}.json").write_text(
    json.dumps([module.train_rows, module.validation_rows, without_trainer])
)
"""


@pytest.mark.distributed
def test_two_lightning_ranks_see_the_global_batches_of_one(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]

    data = tiny_datamodule(tmp_path / "cache", global_batch_sequences=8)
    data.prepare()
    loader = data.train_dataloader()
    expected = [[batch.ids_BL.tolist(), batch.rows_B.tolist()] for _ in range(2) for batch in loader]
    together = [batch for step in zip(ranks[0][0], ranks[1][0], strict=True) for batch in step]
    assert together == expected

    count = data.meta.splits["validation"].sequences
    for place in (1, 2):  # with a trainer, and with torch.distributed alone
        shares = [rank[place] for rank in ranks]
        assert len({len(share) for share in shares if place == 2}) <= 1
        seen = [row for share in shares for rows in share[: len(ranks[0][2])] for row in rows]
        assert seen == list(range(count))
