"""A recorded denoising as plain values, which `smd view` and `smd report` show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sm_diffusion.app.model import Model
    from sm_diffusion.sampling import Canvas, SamplerOutput
    from sm_diffusion.sampling.settings import SamplerSettings

FORMAT = "smd-trajectory-1"


def trajectory_json(
    model: Model,
    settings: SamplerSettings,
    recorded: list[tuple[Canvas, SamplerOutput]],
    *,
    seed: int,
    checkpoint: str | Path,
) -> dict[str, Any]:
    """What `smd view` reads: rows of all batches, each a list of frames, and the text of every token in them.

    {"format", "checkpoint", "variant", "sampler", "seed", "omegas", "states", "mask_id", "tokens": {id: text},
    "rows": [{"text", "nfe", "frames": [{"step", "time", "ids": [L], "state": [L], "soft": {position: {"lambda",
    "blend": [[id, share], ...]}}}]}]}
    """
    from sm_diffusion.diffusion.predictor import SoftMaskPredictor

    rows: list[dict[str, Any]] = []
    states: list[str] = []
    for canvas, out in recorded:
        assert out.trajectory is not None
        frames = out.trajectory.to_json()
        states = frames["states"]
        for row, ids in enumerate(canvas.texts(out.ids_BL)):
            rows.append(
                {
                    "text": model.tokenizer.decode(ids),
                    "nfe": int(out.nfe_B[row]),
                    "frames": [
                        {"step": frame["step"], **{key: frame[key][row] for key in ("time", "ids", "state", "soft")}}
                        for frame in frames["frames"]
                    ],
                }
            )
    seen = {token for row in rows for frame in row["frames"] for token in _tokens(frame)}
    from sm_diffusion.config.nodes import plain

    predictor = model.predictor
    soft = predictor.soft_mask if isinstance(predictor, SoftMaskPredictor) else None
    return {
        "format": FORMAT,
        "checkpoint": str(checkpoint),
        "step": model.step,
        "variant": model.variant,
        "sampler": plain(settings, "sampler"),
        "seed": seed,
        "omegas": None if soft is None else {k: float(v) for k, v in _omegas(soft).items()},
        "states": states,
        "mask_id": model.tokenizer.mask_id,
        "tokens": {str(token): model.tokenizer.decode([token]) for token in sorted(seen)},
        "rows": rows,
    }


def _omegas(soft: Any) -> dict[str, Any]:
    return {"omega_s": soft.omega_s.detach(), "omega_a": soft.omega_a.detach(), "omega_b": soft.omega_b.detach()}


def _tokens(frame: dict[str, Any]) -> list[int]:
    blended = [token for soft in frame["soft"].values() for token, _ in soft["blend"]]
    return [*frame["ids"], *blended]
