"""`smd plan`: what a configuration will cost, from arithmetic alone, before anything runs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sm_diffusion.tools.units import duration, human, human_bytes
from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from sm_diffusion.config import schema
    from sm_diffusion.denoisers.dit import DiTShape

HELP = "parameters, FLOPs, memory and days of a configuration, before running it"
EXAMPLES = """
smd plan model=dit_169m trainer=owt_continuation data.length=1024 data.global_batch_sequences=512 --vocab 50258
smd plan model=dit_1b model.activation_checkpointing=true data.micro_batch_sequences=8 --devices 8
smd plan experiments=quickstart/continue_sm --accelerator A100 --mfu 0.3
smd plan model=dream_7b peft=dora_r16 strategy=single objective=sft data=dream_chat_files data.paths=[chat.jsonl]
"""
# Dense bf16 peak, TFLOP/s, from the vendor's data sheets (SXM form, no sparsity).
PEAK_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0, "B200": 2250.0}
# Vocabularies of well-known hub tokenizers, the mask included.
HUB_VOCABULARIES = dict.fromkeys(("gpt2", "openai-community/gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"), 50258)
FIXED_VOCABULARIES = {"char": 28, "byte": 258}
FLOAT32, BFLOAT16 = 4, 2


# ------------------------------------------------------------------------------------------------------- arithmetic


@dataclass(frozen=True)
class Parameters:
    """total, and of it: embedding and head (vocabulary x width each), norms and head bias in `other`."""

    total: int
    embedding: int
    head: int

    @property
    def non_embedding(self) -> int:
        """All that is neither the input embedding nor the head's matrix."""
        return self.total - self.embedding - self.head


@dataclass(frozen=True)
class Flops:
    """Of one token: forward through blocks and head (at the masked share), the training step, the extra pass's part."""

    forward: float
    training: float
    extra: float

    @property
    def extra_share(self) -> float:
        return self.extra / self.training


def dit_parameters(shape: DiTShape) -> Parameters:
    """Of a DiT, its embedding and head untied."""
    matrix = shape.vocab_size * shape.width
    return Parameters(shape.num_parameters(), matrix, matrix)


def training_flops(
    blocks: float, head: float, *, masked_share: float, p_sm: float, recompute_blocks: bool = False
) -> Flops:
    """blocks, head: forward FLOPs of one position. The head runs at the masked positions only.

    A training step is forward + backward (twice the forward), plus with probability p_sm one more forward pass, plus
    the blocks once more when their activations are recomputed.
    """
    forward = blocks + masked_share * head
    extra = p_sm * forward
    return Flops(forward, 3 * forward + extra + (blocks if recompute_blocks else 0), extra)


def state_bytes(parameters: Parameters, *, ema: bool, mixed: bool) -> dict[str, int]:
    """Bytes that do not depend on the batch: float32 weights, gradients, AdamW's two moments, EMA; under autocast the
    bfloat16 copies of the matrices, kept from forward to backward."""
    count = parameters.total
    parts = {
        "weights (float32)": FLOAT32 * count,
        "gradients (float32)": FLOAT32 * count,
        "AdamW moments (2 x float32)": 2 * FLOAT32 * count,
    }
    if ema:
        parts["EMA (float32)"] = FLOAT32 * count
    if mixed:
        parts["bf16 copies of the matrices"] = BFLOAT16 * (count - parameters.embedding)
    # The chunked loss makes the head's gradient in the forward pass, and scales a copy of it in the backward pass.
    parts["head gradient made forward"] = FLOAT32 * parameters.head
    return parts


def block_activation_bytes(width: int, *, mixed: bool, mask_bytes: int) -> int:
    """Bytes one position keeps in one DiT block for the backward pass.

    Float32 whatever the precision, 4 x width: the two norms' inputs and outputs (the residual stream). In the
    precision of the matrices, 18 x width: inputs of the four matrices (1 + 1 + 1 + 4), GELU's input (4), qkv (3),
    rotated q and k (2), two gated branches (2). mask_bytes, 2 x width: the two dropout masks.
    """
    return width * (4 * FLOAT32 + 18 * (BFLOAT16 if mixed else FLOAT32) + 2 * mask_bytes)


@dataclass(frozen=True, kw_only=True)
class ActivationShape:
    """What decides the activations of a DiT."""

    num_blocks: int
    width: int
    num_positions: int  # micro-batch sequences x length
    mixed: bool
    mask_bytes: int  # an element of a dropout mask: 0 without dropout, 1 on CUDA, that of its values on the CPU
    recompute: bool


def activation_bytes(shape: ActivationShape) -> int:
    """Of all blocks and positions. With recomputation: each block's input, and one block at a time in full."""
    one = block_activation_bytes(shape.width, mixed=shape.mixed, mask_bytes=shape.mask_bytes)
    if shape.recompute:
        return shape.num_positions * (shape.num_blocks * FLOAT32 * shape.width + one)
    return shape.num_positions * shape.num_blocks * one


def logits_chunk_bytes(vocab_size: int, num_positions: int, device_type: str) -> int:
    """The float32 buffer that one chunk of logits after another is written to; its columns are padded."""
    from sm_diffusion.diffusion.scratch import GROUP, chunk_rows

    rows = min(chunk_rows(vocab_size, device_type), num_positions)
    return FLOAT32 * rows * (math.ceil(vocab_size / GROUP) * GROUP)


def days(flops: float, *, peak_tflops: float, mfu: float, num_devices: int) -> float:
    """flops / (devices x peak x MFU), in days."""
    return flops / (num_devices * peak_tflops * 1e12 * mfu) / 86_400


# ---------------------------------------------------------------------------------------------- from a configuration


def vocabulary(tokenizer: schema.TokenizerConfig) -> int:
    """V, the mask included, without downloading anything where the tokenizer is a well-known one."""
    if tokenizer.kind in FIXED_VOCABULARIES:
        return FIXED_VOCABULARIES[tokenizer.kind]
    if tokenizer.kind == "bpe":
        return tokenizer.vocab_size
    if tokenizer.path in HUB_VOCABULARIES:
        return HUB_VOCABULARIES[tokenizer.path]
    from sm_diffusion.data.subword import HubTokenizer

    try:
        return HubTokenizer(name=tokenizer.path, mask=tokenizer.mask).vocab_size
    except (UserError, OSError, ValueError):
        raise UserError(
            f"data.tokenizer.path={tokenizer.path}: its vocabulary is not known here; "
            "say it with --vocab, the mask included"
        ) from None


@dataclass(frozen=True)
class Plan:
    """All numbers of one configuration. memory: part -> bytes a device. steps: optimizer steps."""

    vocab_size: int
    parameters: Parameters
    flops: Flops
    tokens: int
    steps: int
    memory: Mapping[str, int]
    activations: ActivationShape

    @property
    def total_flops(self) -> float:
        return self.flops.training * self.tokens


def make_plan(config: Any, *, vocab: int | None, on_gpu: bool, num_devices: int) -> Plan:
    """config: schema.TrainConfig. num_devices: data-parallel processes, each with all the weights."""
    from sm_diffusion.config import schema
    from sm_diffusion.config.build import build_objective, dit_shape
    from sm_diffusion.config.build_data import micro_batch_sequences

    model, data = config.model, config.data
    if not isinstance(model, schema.DiTConfig):
        raise UserError(f"model={model.name}: smd plan knows the DiT models only")
    size = vocabulary(data.tokenizer) if vocab is None else vocab
    network = dit_shape(model, size)
    parameters = dit_parameters(network)
    blocks, head = network.flops_per_token(data.length)
    p_sm = config.variant.p_sm if isinstance(config.variant, schema.SoftMaskedVariantConfig) else 0.0
    share = build_objective(config, mask_id=0).masked_share()
    flops = training_flops(
        blocks, head, masked_share=share, p_sm=p_sm, recompute_blocks=model.activation_checkpointing
    )
    tokens_per_step, steps = data.global_batch_sequences * data.length, config.trainer.max_steps
    if config.trainer.max_flops is not None:
        steps = min(steps, math.ceil(config.trainer.max_flops / (flops.training * tokens_per_step)))
    precision = config.trainer.precision
    mixed = precision == "bf16-mixed" or (precision == "auto" and on_gpu)
    micro = max(1, micro_batch_sequences(data, num_devices))
    shape = ActivationShape(
        num_blocks=model.num_blocks,
        width=model.width,
        num_positions=micro * data.length,
        mixed=mixed,
        mask_bytes=(1 if on_gpu else BFLOAT16 if mixed else FLOAT32) if model.dropout else 0,
        recompute=model.activation_checkpointing,
    )
    memory = state_bytes(parameters, ema=config.callbacks.ema.enabled, mixed=mixed)
    memory["activations (estimate)"] = activation_bytes(shape)
    masked = max(1, math.ceil(share * shape.num_positions))
    memory["one chunk of logits"] = logits_chunk_bytes(size, masked, "cuda" if on_gpu else "cpu")
    return Plan(size, parameters, flops, steps * tokens_per_step, steps, memory, shape)


# --------------------------------------------------------------------------------------------------------- printing


def plan_text(plan: Plan, *, accelerator: str, mfu: float, num_devices: int) -> str:
    """The plan as people read it, about 30 lines of at most 110 columns."""
    parameters, flops = plan.parameters, plan.flops
    lines = [
        f"parameters            {parameters.total:,} at vocabulary {plan.vocab_size:,}",
        f"  embedding           {parameters.embedding:,}",
        f"  head                {parameters.head:,}",
        f"  non-embedding       {parameters.non_embedding:,}",
        f"FLOPs a token         forward {human(flops.forward)}, training step {human(flops.training)}",
        f"  of it, extra pass   {human(flops.extra)} ({flops.extra_share:.1%} of the training step)",
        f"run                   {plan.steps:,} steps, {human(plan.tokens)} tokens, {human(plan.total_flops)}FLOP",
        "memory a device",
        *(f"  {part:<30} {human_bytes(size):>12}" for part, size in plan.memory.items()),
        f"  {'sum':<30} {human_bytes(sum(plan.memory.values())):>12}",
        *arithmetic_text(plan.activations),
        f"time at {mfu:.0%} of the bf16 peak (MFU), {num_devices} device{'s' if num_devices > 1 else ''}",
    ]
    return "\n".join([*lines, *times_text(plan.total_flops, accelerator=accelerator, mfu=mfu, num_devices=num_devices)])


def times_text(flops: float, *, accelerator: str, mfu: float, num_devices: int) -> list[str]:
    """A line for every known accelerator."""
    lines = []
    for name, peak in PEAK_TFLOPS.items():
        time = days(flops, peak_tflops=peak, mfu=mfu, num_devices=num_devices)
        chosen = "  <- --accelerator" if name == accelerator else ""
        lines.append(f"  {name:<6} {peak:>6,.0f} TFLOP/s   {duration(time)}{chosen}")
    return lines


def arithmetic_text(shape: ActivationShape) -> list[str]:
    """How the estimate of the activations comes about."""
    size = BFLOAT16 if shape.mixed else FLOAT32
    one = block_activation_bytes(shape.width, mixed=shape.mixed, mask_bytes=shape.mask_bytes)
    masks = f", dropout masks {2 * shape.mask_bytes} x width" if shape.mask_bytes else ""
    kept = f"4 x width, and one block in full ({one:,})" if shape.recompute else f"{one:,}"
    return [
        f"  activations: {shape.num_positions:,} positions x {shape.num_blocks} blocks x {kept} bytes",
        f"    a block in full: residual stream 16 x width, matrices {18 * size} x width{masks}",
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="as for train.py")
    parser.add_argument("--vocab", type=int, help="vocabulary size, mask included, instead of the tokenizer's")
    parser.add_argument("--accelerator", choices=sorted(PEAK_TFLOPS), default="H100", help="default: H100")
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that is reached, default 0.4")
    parser.add_argument("--devices", type=int, help="data-parallel devices; default: the configuration's")


def run(args: argparse.Namespace) -> int:
    from sm_diffusion.config import schema
    from sm_diffusion.tools.config_cmd import compose_and_validate

    if not 0 < args.mfu <= 1:
        raise UserError(f"--mfu {args.mfu}: give a share in (0, 1], for example 0.4")
    if args.vocab is not None and args.vocab < 2:
        raise UserError(f"--vocab {args.vocab}: give at least 2, the mask included")
    config = compose_and_validate("train", args.overrides)
    num_devices = config.trainer.devices * config.trainer.num_nodes if args.devices is None else args.devices
    if num_devices < 1:
        raise UserError(f"--devices {num_devices}: give at least 1")
    on_gpu = config.trainer.accelerator != "cpu"
    if isinstance(config.model, schema.HFConfig):
        from sm_diffusion.tools import plan_hf

        backbone = plan_hf.make_plan(config, vocab=args.vocab, on_gpu=on_gpu, num_devices=num_devices)
        print(plan_hf.plan_text(backbone, accelerator=args.accelerator, mfu=args.mfu, num_devices=num_devices))
        return 0
    plan = make_plan(config, vocab=args.vocab, on_gpu=on_gpu, num_devices=num_devices)
    print(plan_text(plan, accelerator=args.accelerator, mfu=args.mfu, num_devices=num_devices))
    return 0
