"""`smd plan` over several devices: what a strategy shards, what it sends, and the largest micro-batch that fits.

Bytes are those one device sends in an optimizer step with ring algorithms over N devices: an all-gather or a
reduce-scatter of S bytes sends (N - 1) / N x S, an all-reduce twice that. ZeRO: Rajbhandari et al., arXiv 1910.02054,
section 7. What FSDP2 gathers, and when, is measured by tests/unit/planning/test_devices.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sm_diffusion.app.text import human_bytes

# The vendors' data sheets, GB of 1e9 bytes.
MEMORY_GB = {"A100": 80.0, "H100": 80.0, "H200": 141.0, "B200": 180.0}
CONTEXT_BYTES = 2**30  # assumed: CUDA context, libraries, workspaces
MAX_MICRO_BATCH = 1 << 14
WEIGHTS = ("weights (float32)", "base weights")
GRADIENTS = ("gradients (float32)", "gradients")
MOMENTS = ("AdamW moments (2 x float32)", "AdamW moments")
AVERAGES = ("EMA (float32)", "EMA")
ADAPTERS = ("adapters and optimizer",)
COPIES = "bf16 copies of the matrices"
GATHERED = "gathered units"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """A network as strategies see it. blocks, root: parameters in the repeated units and in all the rest.

    trained_*: of them, with a gradient. *_bytes: of an element, when blocks are gathered, the root is gathered,
    gradients are summed over ranks, and gradients of a replicated network are.
    """

    blocks: int
    num_blocks: int
    root: int
    trained_blocks: int
    trained_root: int
    gather_bytes: int
    root_bytes: int
    reduce_bytes: int
    gradient_bytes: int

    @property
    def trained(self) -> int:
        return self.trained_blocks + self.trained_root


@dataclass(frozen=True, kw_only=True)
class Step:
    """An optimizer step: devices, forward and backward passes before the update, and how likely each has pass 1."""

    num_devices: int
    micro_steps: int
    p_sm: float
    reshard: bool = True
    hold: bool = True  # whole gradients between the micro-steps of FSDP2

    @property
    def share(self) -> float:
        """(N - 1) / N, what a device sends of a gathered or scattered tensor."""
        return (self.num_devices - 1) / self.num_devices


def step_of(config: Any, *, num_devices: int, micro_batch: int, p_sm: float) -> Step:
    """config: TrainConfig. micro_batch: sequences of a device in one forward pass."""
    micro_steps = max(1, round(config.data.global_batch_sequences / (num_devices * micro_batch)))
    reshard = config.strategy.reshard_after_forward
    hold = config.strategy.hold_gradients
    return Step(num_devices=num_devices, micro_steps=micro_steps, p_sm=p_sm, reshard=reshard, hold=hold)


def ddp_bytes(layout: Layout, step: Step) -> float:
    """Gradients, all-reduced once a step; the feedback pass and all but the last micro-step send nothing."""
    return 2 * step.share * layout.trained * layout.gradient_bytes


def fsdp_bytes(layout: Layout, step: Step) -> float:
    """Gathers: the root once a micro-step; blocks in pass 1, in the forward and in the backward pass (once in all
    without resharding). Gradients are scattered, in the dtype they are summed in, once a step if they are held."""
    passes = 2 + step.p_sm if step.reshard else 1
    gathered = layout.root * layout.root_bytes + passes * layout.blocks * layout.gather_bytes
    reductions = 1 if step.hold else step.micro_steps
    return step.share * (step.micro_steps * gathered + reductions * layout.trained * layout.reduce_bytes)


def zero1_bytes(layout: Layout, step: Step) -> float:
    """Gradients, reduced to their owners once a step; the updated weights, gathered once."""
    return step.share * 2 * layout.trained * layout.gather_bytes


def zero2_bytes(layout: Layout, step: Step) -> float:
    """Gradients, reduced to their owners after every micro-step; the updated weights, gathered once."""
    reduced = step.micro_steps * layout.trained * layout.gather_bytes
    return step.share * (reduced + layout.trained * layout.gather_bytes)


def zero3_bytes(layout: Layout, step: Step) -> float:
    """As FSDP, with the root gathered in each pass like every other unit, and gradients in the weights' dtype."""
    gathered = (2 + step.p_sm) * (layout.blocks + layout.root) * layout.gather_bytes
    return step.share * step.micro_steps * (gathered + layout.trained * layout.gather_bytes)


TRAFFIC: Mapping[str, Callable[[Layout, Step], float]] = {
    "ddp": ddp_bytes,
    "fsdp": fsdp_bytes,
    "deepspeed_zero1": zero1_bytes,
    "deepspeed_zero2": zero2_bytes,
    "deepspeed_zero3": zero3_bytes,
}


def strategy_key(strategy: Any) -> str:
    """strategy: StrategySettings -> a key of TRAFFIC, or `single`."""
    return f"deepspeed_zero{strategy.zero_stage}" if strategy.name == "deepspeed" else strategy.name


def traffic_text(layout: Layout, step: Step, *, chosen: str) -> list[str]:
    """A line for every strategy; none for one device."""
    if step.num_devices == 1:
        return []
    head = f"bytes a device sends in an optimizer step, {step.num_devices} devices"
    lines = [f"{head}, {step.micro_steps} micro-step{'s' if step.micro_steps > 1 else ''}"]
    for name, count in TRAFFIC.items():
        mark = "  <- strategy" if name == chosen else ""
        lines.append(f"  {name:<16} {human_bytes(count(layout, step)):>12}{mark}")
    return lines


def sharded_parts(name: str) -> tuple[str, ...]:
    """The parts of the memory that strategy `name` (a key of TRAFFIC, or `single`) splits over the devices."""
    match name:
        case "fsdp" | "deepspeed_zero3":
            return (*WEIGHTS, *GRADIENTS, *MOMENTS, *AVERAGES, *ADAPTERS)
        case "deepspeed_zero2":
            return (*GRADIENTS, *MOMENTS)
        case "deepspeed_zero1":
            return MOMENTS
        case _:
            return ()


def on_each_device(
    parts: Mapping[str, float], layout: Layout, *, strategy: str, step: Step
) -> dict[str, float]:
    """Memory by part, once what the strategy shards is split. Gathered at one time, and their gradients: the root and
    two blocks (the one that runs and the next); autocast then copies the head's matrix and no block's. FSDP2 that
    holds gradients between micro-steps holds all of them."""
    num_devices = step.num_devices
    split = sharded_parts(strategy) if num_devices > 1 else ()
    if strategy == "fsdp" and step.hold and step.micro_steps > 1:
        split = tuple(part for part in split if part not in GRADIENTS)
    sizes = {part: size / num_devices if part in split else size for part, size in parts.items()}
    if split and any(part in WEIGHTS for part in split):
        block = 2 * layout.blocks / layout.num_blocks
        trained = layout.trained_root + 2 * layout.trained_blocks / layout.num_blocks
        gathered = layout.root * layout.root_bytes + block * layout.gather_bytes
        sizes[GATHERED] = gathered + trained * layout.reduce_bytes
        if COPIES in sizes:
            sizes[COPIES] -= 2 * layout.blocks
    return sizes


def largest_micro_batch(total_bytes: Callable[[int], float], *, limit_bytes: float) -> int:
    """The largest number of sequences m with total_bytes(m) <= limit_bytes, 0 where none fits. Monotone in m."""
    if total_bytes(1) > limit_bytes:
        return 0
    low, high = 1, 2
    while high <= MAX_MICRO_BATCH and total_bytes(high) <= limit_bytes:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if total_bytes(middle) <= limit_bytes else (low, middle)
    return low


def with_micro_batch(config: Any, sequences: int) -> Any:
    """The training configuration with another micro-batch."""
    changed = copy.copy(config)
    changed.data = copy.copy(config.data)
    changed.data.micro_batch_sequences = sequences
    return changed


def fit_text(total_bytes: Callable[[int], float], *, accelerator: str, memory_gb: float | None) -> list[str]:
    """What fits the accelerator, or a device of `memory_gb`."""
    capacity = MEMORY_GB[accelerator] if memory_gb is None else memory_gb
    most = largest_micro_batch(total_bytes, limit_bytes=capacity * 1e9)
    name = accelerator if memory_gb is None else "a device"
    if most == 0:
        return [f"micro-batch           not even 1 sequence fits {name} of {capacity:g} GB"]
    return [f"micro-batch           at most {most:,} sequence{'s' if most > 1 else ''} fit {name} of {capacity:g} GB"]


def cost_text(days: float, *, num_devices: int, price: float | None) -> list[str]:
    """GPU-hours, and what they cost at `price` an hour and device."""
    hours = days * 24 * num_devices
    cost = "" if price is None else f", {hours * price:,.0f} at {price:g} an hour"
    return [f"device-hours          {hours:,.3g}{cost}"]
