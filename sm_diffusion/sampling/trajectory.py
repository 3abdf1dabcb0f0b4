"""How a text is denoised, step by step: what the network saw, ready for a viewer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sm_diffusion.diffusion.predictor import Predictor, SoftMaskPredictor
from sm_diffusion.types import DenseMixture

# A position's state in a frame, by code. "drawn": got its token in the step before; "kept": earlier.
STATES = ("padding", "given", "masked", "soft", "drawn", "kept", "remasked")
_DENSE_TOP = 5  # tokens shown of a full-vocabulary blend


class Frame(NamedTuple):
    """What the network sees at one step; the last frame of a trajectory is the finished text.

    step:        0 for the first prediction.
    time_B:      float64, diffusion time of the prediction made from it.
    ids_BL:      int64, with masks.
    state_BL:    int64, index into STATES.
    lambda_BL:   float32 in [0, 1], weight of the blend at soft positions, 0 elsewhere.
    blend_ids_BLK, blend_probs_BLK: the blended tokens and their shares (sum to 1 over K, but for a truncated
                 full-vocabulary blend); None when the predictor blends nothing.
    """

    step: int
    time_B: Tensor
    ids_BL: Tensor
    state_BL: Tensor
    lambda_BL: Tensor
    blend_ids_BLK: Tensor | None
    blend_probs_BLK: Tensor | None


def make_frame(
    predictor: Predictor,
    memory: Any,
    strength: float | Tensor,
    *,
    step: int,
    time_B: Tensor,
    ids_BL: Tensor,
    state_BL: Tensor,
) -> Frame:
    """Add the blend to a frame: evaluated with the strength the prediction will use."""
    lambda_BL = torch.zeros(ids_BL.shape, device=ids_BL.device)
    blend_ids_BLK: Tensor | None = None
    shares_BLK: Tensor | None = None
    if isinstance(predictor, SoftMaskPredictor) and memory is not None:
        mixture = predictor.soft_mask(ids_BL, memory, predictor.mask_id, strength)
        if isinstance(mixture, DenseMixture):
            lambda_BL, blend_ids_BLK, shares_BLK = _dense_blend(mixture)
        else:
            lambda_BL = 1 - mixture.weights_BLK[..., 0]
            shares_BLK = mixture.weights_BLK[..., 1:] / lambda_BL[..., None].clamp_min(torch.finfo(torch.float32).tiny)
            blend_ids_BLK = mixture.ids_BLK[..., 1:]
    soft_BL = (state_BL == STATES.index("masked")) & (lambda_BL > 0)
    state_BL = torch.where(soft_BL, STATES.index("soft"), state_BL)
    return Frame(step, time_B, ids_BL, state_BL, lambda_BL, blend_ids_BLK, shares_BLK)


def _dense_blend(mixture: DenseMixture) -> tuple[Tensor, Tensor, Tensor]:
    shape, num_positions = mixture.ids_BL.shape, mixture.ids_BL.numel()
    top = mixture.logits_NV.softmax(-1).topk(min(_DENSE_TOP, mixture.logits_NV.shape[-1]), dim=-1)
    lambda_M = mixture.lambda_N.new_zeros(num_positions).index_copy(0, mixture.positions_N, mixture.lambda_N)
    ids_MK = top.indices.new_zeros(num_positions, top.indices.shape[1]).index_copy(0, mixture.positions_N, top.indices)
    shares_MK = top.values.new_zeros(ids_MK.shape).index_copy(0, mixture.positions_N, top.values)
    return lambda_M.view(shape), ids_MK.view(*shape, -1), shares_MK.view(*shape, -1)


@dataclass
class Trajectory:
    """All frames of one call of the sampler."""

    mask_id: int
    frames: list[Frame] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers.

        {"mask_id", "states": names, "frames": [{"step", "time": [B], "ids": [B][L], "state": [B][L],
        "soft": [B] of {position: {"lambda": x, "blend": [[id, share], ...]}}}]}; positions are strings, as JSON needs.
        """
        return {
            "mask_id": self.mask_id,
            "states": list(STATES),
            "frames": [
                {
                    "step": frame.step,
                    "time": frame.time_B.tolist(),
                    "ids": frame.ids_BL.tolist(),
                    "state": frame.state_BL.tolist(),
                    "soft": [_soft_positions(frame, row) for row in range(frame.ids_BL.shape[0])],
                }
                for frame in self.frames
            ],
        }


def _soft_positions(frame: Frame, row: int) -> dict[str, Any]:
    if frame.blend_ids_BLK is None or frame.blend_probs_BLK is None:
        return {}
    out: dict[str, Any] = {}
    for position in frame.lambda_BL[row].nonzero().flatten().tolist():
        ids_K, shares_K = frame.blend_ids_BLK[row, position].tolist(), frame.blend_probs_BLK[row, position].tolist()
        out[str(position)] = {
            "lambda": round(float(frame.lambda_BL[row, position]), 6),
            "blend": [[token, round(share, 6)] for token, share in zip(ids_K, shares_K, strict=True) if share > 0],
        }
    return out
