"""A denoiser as a full model folder that transformers and this package open again; pushing folders to the hub."""

from __future__ import annotations

from pathlib import Path

from sm_diffusion.denoisers.pretrained.hf import HFDenoiser
from sm_diffusion.denoisers.pretrained.loading import SHIFT_KEY
from sm_diffusion.files import read_object, write_json
from sm_diffusion.types import UserError


def export_folder(denoiser: HFDenoiser, folder: Path, *, mask_id: int, max_shard_size: str = "5GB") -> None:
    """Write config.json and safetensors shards, in the dtype in memory.

    config.json is that of the transformers model (qwen2, qwen3 or llama; for Dream and LLaDA too) with two keys more:
    mask_token_id and whether logits are shifted. `loading.open_backbone(folder)` gives the same denoiser;
    `AutoModelForCausalLM.from_pretrained(folder)` reads the same weights, but runs them with causal attention.

    UserError if the folder is not empty, or adapters are still attached (`peft.merge` them first).
    """
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty: export to a new folder")
    if any(".lora_" in name for name, _ in denoiser.lm.named_parameters()):
        raise UserError("adapters are attached: merge them before the export")
    if any(parameter.dtype.itemsize == 1 for parameter in denoiser.lm.parameters()):
        raise UserError("the weights are quantised: open the base unquantised, load the adapter, merge and export that")
    denoiser.lm.save_pretrained(folder, max_shard_size=max_shard_size)
    path = folder / "config.json"
    write_json(path, read_object(path) | {"mask_token_id": mask_id, SHIFT_KEY: denoiser.shift_logits})


def push_folder(folder: Path, repository: str, *, private: bool = True, message: str = "Upload model") -> str:
    """Upload an exported or an adapter folder to the Hugging Face hub; returns the commit hash, for pinning.

    Uses the login of `hf auth login`. Pull with `loading.fetch(repository, commit)`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message)
    except (OSError, ValueError, HTTPError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{repository}: the folder could not be uploaded to the Hugging Face hub ({reason}): "
            f"log in with `hf auth login` and try again, the folder is still at {folder}"
        ) from None
    return str(commit.oid)
