"""Reference tensors computed with the authors' code; see tests/golden/README.md.

`SMD_GOLDEN` may name another folder with files of the same names and layout.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from sm_diffusion.denoisers.dit.model import DiT, DiTShape
from sm_diffusion.diffusion.parameterization import Subs

GOLDEN = Path(os.environ.get("SMD_GOLDEN", Path(__file__).parents[1] / "golden"))
# Names of the parameters of the omegas: the authors' to ours.
RAW_NAMES = {
    "raw_scale": "raw_omega_s",
    "raw_steep": "raw_omega_a",
    "raw_centre_neg": "raw_omega_b",
    "raw_temperature": "raw_temperature",
}


class Golden:
    """One safetensors file of the reference, with its metadata."""

    def __init__(self, name: str) -> None:
        self.file = safe_open(GOLDEN / f"{name}.safetensors", "pt")
        self.meta: dict[str, str] = self.file.metadata() or {}
        self.keys = set(self.file.keys())

    def __getitem__(self, key: str) -> Tensor:
        return self.file.get_tensor(key)

    def group(self, prefix: str) -> dict[str, Tensor]:
        return {key.removeprefix(prefix): self[key] for key in sorted(self.keys) if key.startswith(prefix)}


@functools.cache
def golden_json(name: str) -> Any:
    """One JSON file of the reference."""
    return json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))


def relative_error(ours: Tensor, reference: Tensor) -> float:
    """max |ours - reference| / max |reference|."""
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    scale = reference.double().abs().max().clamp_min(1e-30)
    return float((ours.detach().double() - reference.double()).abs().max() / scale)


def assert_close(ours: Tensor, reference: Tensor, tolerance: float, what: str = "") -> None:
    error = relative_error(ours, reference)
    assert error <= tolerance, f"{what}: relative error {error:.2e} > {tolerance:.0e}"


def tiny_dit() -> DiT:
    """The reference's tiny DiT with its (random, visible) weights."""
    golden = Golden("tiny_dit_weights")
    meta = golden.meta
    model = DiT(
        DiTShape(
            vocab_size=int(meta["vocab"]),
            width=int(meta["hidden_size"]),
            num_blocks=int(meta["n_blocks"]),
            num_heads=int(meta["n_heads"]),
            cond_width=int(meta["cond_dim"]),
        ),
        parameterization=Subs(int(meta["mask_id"])),
    )
    weights = {name.removeprefix("backbone."): golden[name] for name in golden.keys if "inv_freq" not in name}
    model.load_state_dict(weights)
    return model.eval()
