"""Adapters for 7B backbones through the peft package: DoRA (published), LoRA, QLoRA; save, load, merge.

Published (Hersche et al., arXiv 2510.17206, coding experiments): DoRA, rank 16, alpha 16, no dropout, on the q, k, v
and o projections; the base is frozen and the omegas are trained beside the adapter.

An adapter folder holds
    adapter_config.json, adapter_model.safetensors   as peft writes them; the authors' adapters have the same names
    transparency_config.json                         the omegas, as the authors' generation code reads them
    soft_mask.safetensors                            the same as raw parameters, bit for bit
    smd_adapter.json                                 which base weights the adapter belongs to
"""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sm_diffusion.denoisers.adapters import transparency
from sm_diffusion.denoisers.adapters.settings import AdapterSettings
from sm_diffusion.denoisers.pretrained.hf import CausalLM, HFDenoiser
from sm_diffusion.diffusion.soft_mask import SoftMaskBase
from sm_diffusion.files import digest, read_json, read_object, write_json, write_whole
from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel

BASE_FILE, OMEGA_FILE = "smd_adapter.json", "soft_mask.safetensors"
_PREFIX = "base_model.model."
_SAMPLED = 64  # entries of each tensor that go into the fingerprint


DORA = AdapterSettings(kind="dora")
LORA = AdapterSettings(kind="lora")
QLORA = AdapterSettings(kind="lora", quantize=True)


@dataclass(frozen=True)
class Adapter:
    """An adapter inside a denoiser. peft_model shares the denoiser's layers; fingerprint is that of the plain base."""

    denoiser: HFDenoiser
    peft_model: PeftModel
    fingerprint: str
    quantized: bool = False

    def parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters, by name."""
        named = self.denoiser.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}


def base_fingerprint(lm: CausalLM) -> str:
    """sha256 over names, shapes and the first entries of every tensor, as bfloat16: equal for equal weights in any of
    the dtypes a checkpoint is loaded in. Needs the plain, unsharded, unquantised model."""

    def described(name: str, parameter: Tensor) -> str:
        sample = parameter.detach().flatten()[:_SAMPLED].to(torch.bfloat16).view(torch.int16).cpu()
        return f"{name} {tuple(parameter.shape)} {sample.tolist()}"

    return digest(*(described(name, parameter) for name, parameter in sorted(lm.named_parameters())))


def attach(denoiser: HFDenoiser, spec: AdapterSettings, *, seed: int) -> Adapter:
    """Freeze the denoiser and put fresh adapters into it, in place. They start as the identity.

    spec: of a kind other than none.
    seed: of the adapters' random matrices. Adapters are float32 whatever the base's dtype; FSDP2 wants all trainable
    parameters of a unit in one dtype, which they are.
    """
    from_peft = _import_peft()
    linears = [name for name, module in denoiser.lm.named_modules() if isinstance(module, nn.Linear)]
    suffixes = sorted({name.rpartition(".")[2] for name in linears})
    unknown = [target for target in spec.targets if target not in suffixes]
    if unknown:
        raise UserError(f"peft.targets: no layer is called {', '.join(unknown)}: choose from {', '.join(suffixes)}")
    config = from_peft.LoraConfig(
        r=spec.rank,
        lora_alpha=spec.alpha,
        lora_dropout=spec.dropout,
        use_dora=spec.kind == "dora",
        target_modules=list(spec.targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _inject(denoiser, config, quantize=spec.quantize)


def _inject(denoiser: HFDenoiser, config: LoraConfig, *, quantize: bool) -> Adapter:
    fingerprint = base_fingerprint(denoiser.lm)
    denoiser.requires_grad_(False)
    if quantize:
        quantize_4bit(denoiser.lm)
    config.base_model_name_or_path = None  # else peft warns that it renames it
    with warnings.catch_warnings():  # peft reads an attribute that transformers renames
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        peft_model = _import_peft().get_peft_model(denoiser.lm, config)
    peft_model.peft_config["default"].base_model_name_or_path = denoiser.source
    adapter = Adapter(denoiser, peft_model, fingerprint, quantize)
    strangers = [name for name in adapter.parameters() if "lora_" not in name]
    assert not strangers, strangers
    return adapter


def quantize_4bit(lm: CausalLM) -> None:
    """Replace the linear maps of all layers by bitsandbytes' 4-bit NF4 ones with double quantisation (QLoRA,
    arXiv 2305.14314); embedding, head and norms stay. Moving the model to its device quantises the weights."""
    try:
        layers: Any = importlib.import_module("bitsandbytes").nn
    except ImportError:
        raise UserError("peft.quantize needs bitsandbytes: pip install 'sm-diffusion[scale]'") from None
    device = lm.lm_head.weight.device
    for parent in list(lm.model.layers.modules()):
        for name, linear in list(parent.named_children()):
            if type(linear) is not nn.Linear:
                continue
            quantized = layers.Linear4bit(
                linear.in_features,
                linear.out_features,
                bias=linear.bias is not None,
                compute_dtype=linear.weight.dtype,
                compress_statistics=True,
                quant_type="nf4",
                device="meta",
            )
            quantized.weight = layers.Params4bit(
                linear.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=quantized
            )
            quantized.bias = linear.bias
            setattr(parent, name, quantized.to(device))


def save(
    adapter: Adapter, folder: Path, soft_mask: SoftMaskBase | None, *, weights: dict[str, Tensor] | None = None
) -> None:
    """Write an adapter folder.

    soft_mask: whose omegas to write; None: trained without feedback.
    weights:   the denoiser's gathered state dict where it is sharded; None: read from the modules.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if weights is not None:
        weights = {name.removeprefix("lm."): tensor for name, tensor in weights.items()}
        weights = {f"{_PREFIX}{name}": tensor for name, tensor in weights.items()}
    # save_embedding_layers: "auto" would ask the hub for the base's configuration.
    adapter.peft_model.save_pretrained(str(folder), state_dict=weights, save_embedding_layers=False)
    transparency.write(transparency.describe(soft_mask), folder)
    (folder / OMEGA_FILE).unlink(missing_ok=True)
    if soft_mask is not None:
        raw = {name: tensor.detach().cpu().contiguous() for name, tensor in soft_mask.state_dict().items()}
        write_whole(folder / OMEGA_FILE, lambda temporary: save_file(raw, temporary))
    base = {"base": adapter.denoiser.source, "base_fingerprint": adapter.fingerprint}
    write_json(folder / BASE_FILE, base)


def load(
    denoiser: HFDenoiser, folder: Path, *, trainable: bool, quantize: bool = False
) -> tuple[Adapter, SoftMaskBase | None]:
    """Put a saved adapter, ours or the authors', into a plain denoiser; also returns its soft mask.

    UserError if the folder is incomplete or malformed, or the adapter belongs to other base weights. The authors'
    folders do not say which weights: then names and shapes are checked, and a different base name is a warning.
    """
    from_peft = _import_peft()
    if not (folder / "adapter_config.json").is_file():
        raise UserError(f"{folder} is no adapter folder: adapter_config.json is missing")
    try:
        config = from_peft.PeftConfig.from_pretrained(str(folder))
        tensors = load_file(folder / "adapter_model.safetensors")
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be read as an adapter ({error})") from None
    if not isinstance(config, from_peft.LoraConfig):
        raise UserError(f"{folder}: a {config.peft_type} adapter: only LoRA and DoRA are supported")
    soft_mask = read_soft_mask(folder)
    _check_base(denoiser, folder, str(config.base_model_name_or_path))
    # The authors list their head here; its omegas are in transparency_config.json.
    config.modules_to_save = None
    config.inference_mode = not trainable
    tensors = {name: tensor for name, tensor in tensors.items() if ".transparency." not in name}
    _check_tensors(denoiser.lm, tensors, config, folder)
    adapter = _inject(denoiser, config, quantize=quantize)
    result = from_peft.set_peft_model_state_dict(adapter.peft_model, tensors)
    if result.unexpected_keys:
        raise UserError(f"{folder}: unexpected tensor {result.unexpected_keys[0]}")
    return adapter, soft_mask


def named_base(folder: Path) -> str | None:
    """The base that an adapter folder, ours or the authors', names; None: none. UserError for a damaged file."""
    for name, key in ((BASE_FILE, "base"), ("adapter_config.json", "base_model_name_or_path")):
        path = folder / name
        if not path.is_file():
            continue
        base = read_object(path, advice="copy the adapter folder again").get(key)
        if base:
            return str(base)
    return None


def read_soft_mask(folder: Path) -> SoftMaskBase | None:
    """The soft mask of an adapter folder: bit for bit if we wrote it, else from transparency_config.json."""
    soft_mask = transparency.read(folder).soft_mask()
    if soft_mask is not None and (folder / OMEGA_FILE).is_file():
        try:
            soft_mask.load_state_dict(load_file(folder / OMEGA_FILE))
        except (RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder / OMEGA_FILE} does not fit {transparency.FILE_NAME} ({error})") from None
    return soft_mask


def _check_base(denoiser: HFDenoiser, folder: Path, named: str) -> None:
    path = folder / BASE_FILE
    if path.is_file():
        try:
            theirs = read_json(path)["base_fingerprint"]
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{path} is malformed: delete it to skip the check of the base weights") from None
        if theirs != base_fingerprint(denoiser.lm):
            raise UserError(f"{folder}: the adapter was trained on other weights ({named}) than {denoiser.source}")
    elif named.rpartition("/")[2] != denoiser.source.rpartition("/")[2]:
        warnings.warn(f"{folder}: made for {named}, used on {denoiser.source}: make sure they agree", stacklevel=3)


def _check_tensors(lm: CausalLM, tensors: dict[str, Tensor], config: Any, folder: Path) -> None:
    modules = dict(lm.named_modules())
    wanted = {name for name in modules if name.rpartition(".")[2] in config.target_modules}
    found, wrong = set(), []
    for key, tensor in tensors.items():
        name, _, part = key.removeprefix(_PREFIX).partition(".lora_")
        linear = modules.get(name)
        found.add(name)
        if not isinstance(linear, nn.Linear):
            wrong.append(f"no layer {name}")
        elif (part.startswith("A.") and tensor.shape[1] != linear.in_features) or (
            part.startswith(("B.", "magnitude")) and tensor.shape[0] != linear.out_features
        ):
            wrong.append(f"{name} is {list(linear.weight.shape)}, its lora_{part} is {list(tensor.shape)}")
    wrong += [f"nothing for {name}" for name in sorted(wanted - found)]
    if wrong:
        raise UserError(f"{folder}: adapter of another base: {wrong[0]} ({len(wrong)} such)")


def merge(adapter: Adapter) -> HFDenoiser:
    """Add the adapter to the base's weights, in place, and return the plain denoiser. It has no parameter to train.

    UserError for a quantised base: open the base again in full precision, `load` the saved adapter, merge that.
    """
    if adapter.quantized:
        raise UserError(
            "adapters do not merge into 4-bit weights: open the base unquantised and load the adapter there"
        )
    adapter.denoiser.lm = adapter.peft_model.merge_and_unload(safe_merge=True)
    return adapter.denoiser.eval()


def _import_peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError("adapters need the package peft: pip install 'sm-diffusion[peft]'") from None
    return peft
