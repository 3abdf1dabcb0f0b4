"""Numbers told from within a step: means over an interval, over processes, and nothing outside of a step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sm_diffusion.diffusion.metrics import Recorder, record, recording
from sm_diffusion.diffusion.soft_mask import FullVocabularySoftMask, SoftMask, remember
from sm_diffusion.types import LogitsMemory

CPU = torch.device("cpu")


def read(recorder: Recorder, world: int = 1) -> dict[str, float]:
    return recorder.read(lambda sums: world * sums, device=CPU)


def test_means_are_over_all_elements_of_an_interval() -> None:
    recorder = Recorder()
    with recording(recorder):
        record("a", 1.0)
        record("a", torch.tensor([2.0, 6.0]))
        record("b", torch.tensor([[1.0, float("nan")]]), where=torch.tensor([[True, False]]))
    recorder.record_sum("c", torch.tensor(6.0, dtype=torch.float64), torch.tensor(4))
    assert read(recorder) == {"a": 3.0, "b": 1.0, "c": 1.5}
    assert read(recorder) == {}, "an interval begins anew"


def test_equal_processes_change_no_mean() -> None:
    recorder = Recorder()
    recorder.record("a", torch.tensor([2.0, 6.0]))
    assert read(recorder, world=4) == {"a": 4.0}


def test_outside_of_a_step_nothing_is_recorded() -> None:
    recorder = Recorder()
    record("a", 1.0)
    with pytest.raises(ZeroDivisionError), recording(recorder):
        raise ZeroDivisionError
    record("a", 1.0)
    assert read(recorder) == {}


def test_nothing_is_read_before_the_log_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number of a GPU that is made one of Python's waits for the GPU."""
    recorder, value = Recorder(), torch.rand(3, requires_grad=True)

    def refuse(*_: object) -> None:
        raise AssertionError("a tensor was read")

    for name in ("item", "tolist", "__float__", "__int__", "__bool__", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, refuse)
    for _ in range(3):
        recorder.record("a", value)
        recorder.record("b", value, where=value > 0.5)
    monkeypatch.undo()
    assert read(recorder)["a"] == pytest.approx(float(value.detach().mean()))


@pytest.mark.parametrize("dense", [False, True])
def test_soft_masks_tell_lambda_and_entropy_of_what_they_soften(dense: bool) -> None:
    logits_BLV = torch.randn(1, 4, 6, generator=torch.Generator().manual_seed(0))
    ids_BL, omegas = torch.tensor([[5, 1, 5, 5]]), {"omega_s": 0.5, "omega_a": 2.0, "omega_b": -1.0}
    soft_mask = FullVocabularySoftMask(temperature=1.0, **omegas) if dense else SoftMask(top_k=2, **omegas)
    if dense:
        memory = LogitsMemory(torch.arange(4), logits_BLV[0])
    else:
        memory = remember(logits_BLV, 2)
    recorder = Recorder()
    with recording(recorder):
        mixture = soft_mask(ids_BL, memory, 5)
    found = read(recorder)
    probs_NV = logits_BLV[0, [0, 2, 3]].softmax(-1)
    entropy_N = -(probs_NV * probs_NV.log()).sum(-1)
    lambda_N = 0.5 * torch.sigmoid(2.0 * (-entropy_N + 1.0))
    assert found["train/entropy"] == pytest.approx(float(entropy_N.mean()), rel=1e-4)
    assert found["train/lambda"] == pytest.approx(float(lambda_N.mean()), rel=1e-4)
    assert mixture is not None
