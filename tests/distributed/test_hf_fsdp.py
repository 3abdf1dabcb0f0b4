"""Fine-tune -> adapter -> merge -> export -> generate in two FSDP2 processes gives the numbers and tokens of one."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from sm_diffusion.data.chat.collate import ChatSample, collate
from sm_diffusion.denoisers.adapters import peft
from sm_diffusion.denoisers.pretrained.export import export_folder
from sm_diffusion.denoisers.pretrained.loading import open_backbone
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.predictor import SoftMaskPredictor
from sm_diffusion.diffusion.sft import FirstRowTime, SFTObjective
from sm_diffusion.diffusion.soft_mask import SoftMask
from sm_diffusion.sampling import (
    ConfidenceOrder,
    RowNoise,
    Sampler,
    Timetable,
    TokenSampling,
    build_measure,
    from_prompts,
)
from sm_diffusion.types import Draws
from tests.helpers.qwen import MASK, PAD, tiny_qwen

SAMPLES = [ChatSample(list(range(5, 20)), 6), ChatSample(list(range(30, 42)), 3)]


def soft_mask() -> SoftMask:
    return SoftMask(top_k=3, omega_s=0.3, omega_a=6.66, omega_b=-0.75)


def fine_tune(folder: Path, *, sharded: bool) -> None:
    """Both processes see the same batch, so that their averaged gradient is that of one process."""
    denoiser, head = tiny_qwen().to(torch.bfloat16), soft_mask()
    adapter = peft.attach(denoiser, peft.DORA, seed=0)
    predictor = SoftMaskPredictor(denoiser, head, mask_id=MASK, mixing=mixing.linear).train()
    if sharded:
        for unit in denoiser.shard_units():
            fully_shard(unit)
        fully_shard(predictor)
    trainable = [parameter for parameter in predictor.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2, weight_decay=0.0)
    objective = SFTObjective(times=FirstRowTime(t_min=0.2, t_max=0.8), mask_id=MASK)
    batch = collate(SAMPLES, torch.arange(2), pad_id=PAD, extra=3)
    uniform_BL = torch.rand(batch.ids_BL.shape, generator=torch.Generator().manual_seed(2))
    losses = []
    for _ in range(3):
        out = objective(predictor, batch, Draws(torch.tensor([0.5, 0.1]), uniform_BL, batch.rows_B, 2), feedback=True)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(out.loss.item())
    weights = None
    if sharded:
        state = get_model_state_dict(predictor, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
        if dist.get_rank() != 0:
            return
        weights = {name.removeprefix("denoiser."): t for name, t in state.items() if name.startswith("denoiser.")}
        head = soft_mask()
        head.load_state_dict({name.removeprefix("soft_mask."): t for name, t in state.items() if "raw_omega" in name})
    peft.save(adapter, folder, head, weights=weights)
    (folder / "losses.json").write_text(json.dumps(losses))


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    fine_tune(Path(folder) / "two", sharded=True)
    dist.destroy_process_group()


def generated(folder: Path | None) -> list[list[int]]:
    """Adapter -> merge -> export -> open again -> tokens; without a folder those of the base."""
    denoiser, head = tiny_qwen(), soft_mask()
    if folder is not None:
        adapter, found = peft.load(denoiser, folder, trainable=False)
        assert isinstance(found, SoftMask)
        export_folder(peft.merge(adapter), folder / "full", mask_id=MASK)
        denoiser, head = open_backbone(str(folder / "full"), dtype=torch.float32).denoiser, found
    predictor = SoftMaskPredictor(denoiser, head, mask_id=MASK, mixing=mixing.linear)
    canvas = from_prompts([[5, 9, 21], [7]], new_tokens=10, mask_id=MASK)
    order = ConfidenceOrder(measure=build_measure("entropy"), pace=Timetable(num_steps=5))
    sampler = Sampler(predictor, order, sampling=TokenSampling(temperature=0.0))
    return canvas.texts(sampler.sample(canvas, RowNoise([1, 2], canvas.positions_BL)).ids_BL)


@pytest.mark.distributed
def test_two_fsdp2_processes_equal_one(tmp_path: Path) -> None:
    fine_tune(tmp_path / "one", sharded=False)
    multiprocessing.set_forkserver_preload([__name__])  # imported once, not once a process
    torch.multiprocessing.start_processes(worker, (str(tmp_path),), nprocs=2, start_method="forkserver")
    losses = [json.loads((tmp_path / name / "losses.json").read_text()) for name in ("one", "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][-1] < losses[0][0]
    for file in ("adapter_model.safetensors", peft.OMEGA_FILE):
        one, two = (load_file(tmp_path / name / file) for name in ("one", "two"))
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-4, msg=name)
    texts = [generated(tmp_path / name) for name in ("one", "two")]
    assert texts[0] == texts[1]
    assert texts[0] != generated(None), "the adapter changes what is generated"
