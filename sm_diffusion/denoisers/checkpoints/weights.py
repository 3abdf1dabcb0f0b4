"""Weights in and out: our checkpoints, and the published Lightning layouts of MDLM and soft-masked MDLM.

Published layout (read from checkpoints of the authors' code): `state_dict` with `backbone.*` and, with soft-masking,
`tran_head.raw_{scale,centre_neg,steep,temperature}`; `ema.shadow_params`, a list in state_dict order without the rotary
buffer, of the network alone. Our layout: `predictor.denoiser.*`, `predictor.soft_mask.*`, EMA by name in the state of
the EMA callback.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from sm_diffusion.denoisers.checkpoints.reader import Archive, load_tensors
from sm_diffusion.denoisers.dit.model import DiTShape
from sm_diffusion.types import UserError

PUBLISHED_OMEGAS = {
    "raw_scale": "raw_omega_s",
    "raw_steep": "raw_omega_a",
    "raw_centre_neg": "raw_omega_b",
    "raw_temperature": "raw_temperature",
}
EMA_STATE_KEY = "EMACallback"
PROVENANCE_KEY = "sm_diffusion"  # configuration and tokenizer, in a checkpoint and in what is exported from it
ROTARY_BUFFER = "rotary_emb.inv_freq"


@dataclass(frozen=True)
class Weights:
    """Weights of a predictor, by name below `denoiser` and `soft_mask`.

    soft_mask is empty for a plain MDLM. provenance is what one of our checkpoints says of its configuration, else None.
    """

    path: Path
    denoiser: dict[str, Tensor]
    soft_mask: dict[str, Tensor]
    provenance: dict[str, Any] | None
    step: int


def read_weights(path: str | Path, *, weights: str) -> Weights:
    """Read a checkpoint file. weights: "raw" or "ema".

    Raises UserError for a missing, truncated or foreign file, and for "ema" where there is none.
    """
    path = Path(path)
    if weights not in ("raw", "ema"):
        raise UserError(f"weights={weights}: choose raw or ema")
    if path.suffix == ".safetensors":
        try:
            tensors, said = load_file(path), _metadata(path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error}): copy it again") from None
        return _published(path, tensors, None, int(said.get("step", 0)), _provenance_in(said, path))
    tree = Archive(path).tree()
    if not isinstance(tree, dict) or not isinstance(tree.get("state_dict"), dict):
        raise UserError(f"{path}: no state_dict in this file; it is not a training checkpoint")
    state: dict[str, Any] = tree["state_dict"]
    step = int(tree.get("global_step", 0))
    if any(name.startswith("predictor.denoiser.") for name in state):
        return _ours(path, tree, weights, step)
    if any(name.startswith("backbone.") for name in state):
        shadow = None
        if weights == "ema":
            shadow = tree.get("ema")
            if not isinstance(shadow, dict) or "shadow_params" not in shadow:
                raise UserError(f"{path}: this checkpoint holds no EMA weights; use raw weights")
            shadow = shadow["shadow_params"]
        return _published(path, state, shadow, step)
    raise UserError(f"{path}: neither a checkpoint of this project nor a published MDLM one (keys: {_some(state)})")


def _ours(path: Path, tree: dict[str, Any], weights: str, step: int) -> Weights:
    state = dict(tree["state_dict"])
    if weights == "ema":
        ema = tree.get("callbacks", {}).get(EMA_STATE_KEY)
        if not ema:
            raise UserError(f"{path}: this checkpoint holds no EMA weights; use raw weights")
        state.update({f"predictor.{name}": value for name, value in ema["shadow"].items()})
    loaded = load_tensors(state)
    provenance = tree.get(PROVENANCE_KEY)
    return Weights(
        path, _below(loaded, "predictor.denoiser."), _below(loaded, "predictor.soft_mask."), provenance, step
    )


def read_provenance(path: Path) -> dict[str, Any] | None:
    """What a checkpoint file says of its configuration and tokenizer; None: nothing. Reads no weights."""
    if path.suffix == ".safetensors":
        try:
            return _provenance_in(_metadata(path), path)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error}): copy it again") from None
    tree = Archive(path).tree()
    found = tree.get(PROVENANCE_KEY) if isinstance(tree, dict) else None
    return found if isinstance(found, dict) else None


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata() or {}


def _provenance_in(metadata: Mapping[str, str], path: Path) -> dict[str, Any] | None:
    if PROVENANCE_KEY not in metadata:
        return None
    try:
        found: dict[str, Any] = json.loads(metadata[PROVENANCE_KEY])
    except ValueError as error:
        raise UserError(f"{path}: its record of the configuration is damaged ({error}): export it again") from None
    return found


def _published(
    path: Path,
    state: Mapping[str, Any],
    shadow: list[Any] | None,
    step: int,
    provenance: dict[str, Any] | None = None,
) -> Weights:
    network = _below(state, "backbone.")
    network.pop(ROTARY_BUFFER, None)
    if shadow is not None:
        # Zip would silently drop tensors: the list must name every parameter of the network, in order.
        if len(shadow) < len(network):
            raise UserError(f"{path}: EMA holds {len(shadow)} tensors, the network has {len(network)}")
        network = dict(zip(network, shadow[: len(network)], strict=True))
    head = {
        PUBLISHED_OMEGAS[name]: value
        for name, value in _below(state, "tran_head.").items()
        if name in PUBLISHED_OMEGAS
    }
    omegas = {name: value.view(1) for name, value in load_tensors(head).items()}
    return Weights(path, load_tensors(network), omegas, provenance, step)


def dit_shape(weights: Weights, *, num_heads: int) -> DiTShape:
    """Sizes of a DiT from its tensors; the number of heads is the one thing they do not show."""
    embedding = weights.denoiser["vocab_embed.embedding"]
    blocks = {name.split(".")[1] for name in weights.denoiser if name.startswith("blocks.")}
    return DiTShape(
        vocab_size=embedding.shape[0],
        width=embedding.shape[1],
        num_blocks=len(blocks),
        num_heads=num_heads,
        cond_width=weights.denoiser["sigma_map.mlp.0.weight"].shape[0],
    )


def load_into(module: nn.Module, state: Mapping[str, Tensor], *, source: Path, what: str) -> None:
    """Copy `state` into `module`; UserError lists every missing, unexpected or differently shaped tensor."""
    own = module.state_dict()
    _compare(own, state, source=source, what=what)
    module.load_state_dict(dict(state))


def check_fits(module: nn.Module, path: str | Path) -> None:
    """UserError unless one of our training checkpoints fits `module`; reads shapes only, no tensor."""
    tree = Archive(path).tree()
    if not isinstance(tree, dict) or not isinstance(tree.get("state_dict"), dict):
        raise UserError(f"{path}: no state_dict in this file; it is not a training checkpoint")
    _compare(module.state_dict(), tree["state_dict"], source=Path(path), what="configuration")


def _compare(own: Mapping[str, Tensor], state: Mapping[str, Any], *, source: Path, what: str) -> None:
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is unexpected" for name in state if name not in own]
    problems += [
        f"{name} is {tuple(state[name].shape)} there, {tuple(own[name].shape)} here"
        for name in own
        if name in state and tuple(state[name].shape) != tuple(own[name].shape)
    ]
    if problems:
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise UserError(f"{source}: does not fit this {what}: " + "; ".join(problems[:6]) + more)


def _below(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _some(state: Mapping[str, Any]) -> str:
    return ", ".join(list(state)[:3]) + (" ..." if len(state) > 3 else "")
