"""What a configuration will cost, from arithmetic alone, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from sm_diffusion.app.text import duration, human, human_bytes
from sm_diffusion.data.tokenizers.sizes import vocabulary
from sm_diffusion.planning import devices as plan_scale
from sm_diffusion.planning.arithmetic import PEAK_TFLOPS, Flops, days, training_flops
from sm_diffusion.planning.memory import (
    BFLOAT16,
    FLOAT32,
    ActivationShape,
    Parameters,
    activation_bytes,
    arithmetic_text,
    logits_chunk_bytes,
    state_bytes,
)
from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from sm_diffusion.denoisers.dit.model import DiTShape
    from sm_diffusion.training.strategies.settings import StrategySettings



# ------------------------------------------------------------------------------------------------------- arithmetic


def dit_parameters(shape: DiTShape) -> Parameters:
    """Of a DiT, its embedding and head untied."""
    matrix = shape.vocab_size * shape.width
    return Parameters(shape.num_parameters(), matrix, matrix)


# ---------------------------------------------------------------------------------------------- from a configuration


@dataclass(frozen=True)
class Plan:
    """All numbers of one configuration. memory: part -> bytes a device. steps: optimizer steps."""

    vocab_size: int
    parameters: Parameters
    flops: Flops
    tokens: int
    steps: int
    memory: Mapping[str, float]
    activations: ActivationShape
    layout: plan_scale.Layout
    step: plan_scale.Step

    @property
    def total_bytes(self) -> float:
        return sum(self.memory.values())

    @property
    def total_flops(self) -> float:
        return self.flops.training * self.tokens


def dit_layout(shape: DiTShape, *, mixed: bool, strategy: StrategySettings) -> plan_scale.Layout:
    """All is trained, in float32; under autocast blocks are gathered in bfloat16, as `strategy.gather_dtype` says."""
    total = shape.num_parameters()
    root = replace(shape, num_blocks=0).num_parameters()
    half = strategy.gather_dtype == "bfloat16" or (strategy.gather_dtype == "auto" and mixed)
    return plan_scale.Layout(
        blocks=total - root,
        num_blocks=shape.num_blocks,
        root=root,
        trained_blocks=total - root,
        trained_root=root,
        gather_bytes=BFLOAT16 if half else FLOAT32,
        root_bytes=FLOAT32,
        reduce_bytes=BFLOAT16 if strategy.reduce_dtype == "bfloat16" else FLOAT32,
        gradient_bytes=FLOAT32,
    )


def make_plan(config: Any, *, vocab: int | None, on_gpu: bool, num_devices: int) -> Plan:
    """config: TrainConfig. num_devices: data-parallel processes."""
    from sm_diffusion.app.build import build_objective
    from sm_diffusion.denoisers.dit.settings import DiTSettings
    from sm_diffusion.denoisers.settings import label

    model, data = config.model, config.data
    if not isinstance(model, DiTSettings):
        raise UserError(f"model={label(model)}: smd plan knows the DiT models only")
    size = vocabulary(data.tokenizer) if vocab is None else vocab
    network = model.shape(size)
    parameters = dit_parameters(network)
    blocks, head = network.flops_per_token(data.length)
    p_sm = config.variant.extra_pass_share(config.trainer.max_steps)
    share = build_objective(config, mask_id=0).masked_share()
    flops = training_flops(
        blocks, head, masked_share=share, p_sm=p_sm, recompute_blocks=model.activation_checkpointing
    )
    tokens_per_step, steps = data.global_batch_sequences * data.length, config.trainer.max_steps
    if config.trainer.max_flops is not None:
        steps = min(steps, math.ceil(config.trainer.max_flops / (flops.training * tokens_per_step)))
    precision = config.trainer.precision
    mixed = precision == "bf16-mixed" or (precision == "auto" and on_gpu)
    micro = max(1, data.micro_batch(num_devices))
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
    if on_gpu:
        memory["CUDA context (assumed)"] = plan_scale.CONTEXT_BYTES
    layout = dit_layout(network, mixed=mixed, strategy=config.strategy)
    strategy = plan_scale.strategy_key(config.strategy)
    step = plan_scale.step_of(config, num_devices=num_devices, micro_batch=micro, p_sm=p_sm)
    parts = plan_scale.on_each_device(memory, layout, strategy=strategy, step=step)
    return Plan(size, parameters, flops, steps * tokens_per_step, steps, parts, shape, layout, step)


# --------------------------------------------------------------------------------------------------------- printing


def plan_text(plan: Plan, *, report: Sequence[str]) -> str:
    """The plan as people read it, about 40 lines of at most 110 columns. report: what holds for any network."""
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
        f"  {'sum':<30} {human_bytes(plan.total_bytes):>12}",
        *arithmetic_text(plan.activations),
    ]
    return "\n".join([*lines, *report])


def times_text(flops: float, *, accelerator: str, mfu: float, num_devices: int) -> list[str]:
    """A line for every known accelerator."""
    lines = []
    for name, peak in PEAK_TFLOPS.items():
        time = days(flops, peak_tflops=peak, mfu=mfu, num_devices=num_devices)
        chosen = "  <- --accelerator" if name == accelerator else ""
        lines.append(f"  {name:<6} {peak:>6,.0f} TFLOP/s   {duration(time)}{chosen}")
    return lines


# ------------------------------------------------------------------------------------------------------ of any network


@dataclass(frozen=True, kw_only=True)
class Terms:
    """On what the network is to run.

    accelerator: a key of PEAK_TFLOPS. mfu: share of its peak that is reached, in (0, 1]. memory_gb: of a device,
    instead of the accelerator's. price: of a device and hour.
    """

    accelerator: str = "H100"
    mfu: float = 0.4
    memory_gb: float | None = None
    price: float | None = None


def with_tokens(config: Any, tokens: float) -> Any:
    """The training configuration (TrainConfig) with as many steps as make up so many tokens."""
    steps = math.ceil(tokens / (config.data.global_batch_sequences * config.data.length))
    return replace(config, trainer=replace(config.trainer, max_steps=steps, max_flops=None))


def full_text(config: Any, terms: Terms, *, vocab: int | None = None, num_devices: int | None = None) -> str:
    """The plan, what fits, what is sent, how long it takes and what it costs.

    config: TrainConfig. vocab: V, the mask included; None: the tokenizer's. num_devices: None for the
    configuration's.
    """
    from sm_diffusion.denoisers.pretrained.settings import HFSettings
    from sm_diffusion.planning import pretrained

    trainer = config.trainer
    count = trainer.devices * trainer.num_nodes if num_devices is None else num_devices
    on_gpu = trainer.accelerator != "cpu"
    maker: Any = make_plan
    text: Any = plan_text
    if isinstance(config.model, HFSettings):
        maker, text = pretrained.make_plan, pretrained.plan_text

    def planned(changed: Any) -> Any:
        return maker(changed, vocab=vocab, on_gpu=on_gpu, num_devices=count)

    def total_bytes(sequences: int) -> float:
        return float(planned(plan_scale.with_micro_batch(config, sequences)).total_bytes)

    plan = planned(config)
    return str(text(plan, report=report_lines(plan, config, terms, total_bytes)))


def report_lines(plan: Any, config: Any, terms: Terms, total_bytes: Callable[[int], float]) -> list[str]:
    """plan: a Plan, or that of a pretrained backbone. total_bytes: of a micro-batch of so many sequences."""
    num_devices, flops = plan.step.num_devices, plan.total_flops
    chosen = days(flops, peak_tflops=PEAK_TFLOPS[terms.accelerator], mfu=terms.mfu, num_devices=num_devices)
    return [
        *plan_scale.fit_text(total_bytes, accelerator=terms.accelerator, memory_gb=terms.memory_gb),
        *plan_scale.traffic_text(plan.layout, plan.step, chosen=plan_scale.strategy_key(config.strategy)),
        f"time at {terms.mfu:.0%} of the bf16 peak (MFU), {num_devices} device{'s' if num_devices > 1 else ''}",
        *times_text(flops, accelerator=terms.accelerator, mfu=terms.mfu, num_devices=num_devices),
        *plan_scale.cost_text(chosen, num_devices=num_devices, price=terms.price),
    ]
