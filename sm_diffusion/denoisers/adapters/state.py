"""With adapters, what a denoiser saves: its trainable parameters and which base they belong to, not the 7B base.

Two public hooks of torch do it, so that training checkpoints, their checks, resuming and evaluation need not know.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from sm_diffusion.denoisers.adapters.peft import Adapter, attach
from sm_diffusion.denoisers.adapters.settings import AdapterSettings
from sm_diffusion.denoisers.pretrained.hf import HFDenoiser
from sm_diffusion.diffusion.contracts import Denoiser
from sm_diffusion.types import UserError

FINGERPRINT = "base_fingerprint"


def with_adapter(denoiser: Denoiser, settings: AdapterSettings, *, seed: int) -> Denoiser:
    """The denoiser with fresh adapters, its base frozen; unchanged for kind none."""
    if settings.kind == "none":
        return denoiser
    if not isinstance(denoiser, HFDenoiser):
        raise UserError(f"peft.kind={settings.kind}: adapters need a transformers model: set model=dream_7b")
    return save_adapters_only(attach(denoiser, settings, seed=seed))


def save_adapters_only(adapter: Adapter) -> HFDenoiser:
    """Make `state_dict` of the adapter's denoiser hold its trainable parameters and a buffer with the base's
    fingerprint (32 bytes), and `load_state_dict` accept that. UserError there if the fingerprint is another's."""
    denoiser = adapter.denoiser
    denoiser.adapter = adapter
    digest = torch.frombuffer(bytearray.fromhex(adapter.fingerprint), dtype=torch.uint8)
    denoiser.register_buffer(FINGERPRINT, digest.clone())
    denoiser.register_state_dict_post_hook(_drop_frozen)  # type: ignore[no-untyped-call]
    denoiser.register_load_state_dict_pre_hook(_check_base)  # type: ignore[no-untyped-call]
    denoiser.register_load_state_dict_post_hook(_accept_missing_base)  # type: ignore[no-untyped-call]
    return denoiser


def _frozen(denoiser: nn.Module) -> list[str]:
    named = denoiser.named_parameters(remove_duplicate=False)
    return [name for name, parameter in named if not parameter.requires_grad]


def _drop_frozen(denoiser: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in _frozen(denoiser):
        state.pop(f"{prefix}{name}", None)
    # What quantised weights keep beside them belongs to the base as well.
    for name in [key for key in state if key.startswith(f"{prefix}lm.") and ".base_layer." in key]:
        del state[name]


def _check_base(denoiser: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    theirs, ours = state.get(f"{prefix}{FINGERPRINT}"), denoiser.get_buffer(FINGERPRINT)
    if theirs is not None and not torch.equal(theirs.cpu(), ours.cpu()):
        assert isinstance(denoiser, HFDenoiser)
        raise UserError(
            f"the checkpoint's adapter was trained on other base weights than {denoiser.source or 'the random ones'}: "
            "set model.path and model.revision to those of its run"
        )


def _accept_missing_base(denoiser: nn.Module, keys: Any) -> None:
    names = _frozen(denoiser)
    missing = [key for key in keys.missing_keys if not key.endswith(tuple(names)) and ".base_layer." not in key]
    keys.missing_keys[:] = missing
