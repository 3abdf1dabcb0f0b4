"""`smd plan` for pretrained backbones: parameters, adapters and memory from the numbers of their configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sm_diffusion.app.text import human, human_bytes
from sm_diffusion.data.tokenizers.sizes import vocabulary
from sm_diffusion.planning import devices as plan_scale
from sm_diffusion.planning.arithmetic import Flops
from sm_diffusion.planning.memory import BFLOAT16, FLOAT32, logits_chunk_bytes
from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from sm_diffusion.data.settings import DataSettings
    from sm_diffusion.denoisers.adapters.settings import AdapterSettings
    from sm_diffusion.denoisers.pretrained.settings import HFSettings

# NF4 with double quantisation (arXiv 2305.14314, section 3): 4 bits, and 0.127 of constants, a parameter.
NF4_BITS = 4.127
LIMIT_BYTES = 40e9  # "fits 40 GB"


@dataclass(frozen=True, kw_only=True)
class HFNumbers:
    """Sizes of a Qwen2, Qwen3 or Llama causal LM. query, key: widths of all heads together."""

    vocab_size: int
    width: int
    ffn_width: int
    num_layers: int
    query: int
    key: int
    head_width: int
    qkv_bias: bool
    head_norm: bool
    tied: bool

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(inputs, outputs) of the linear maps of a layer."""
        return {
            "q_proj": (self.width, self.query),
            "k_proj": (self.width, self.key),
            "v_proj": (self.width, self.key),
            "o_proj": (self.query, self.width),
            "gate_proj": (self.width, self.ffn_width),
            "up_proj": (self.width, self.ffn_width),
            "down_proj": (self.ffn_width, self.width),
        }

    @property
    def linear_parameters(self) -> int:
        """Of the matrices of all layers: what 4-bit quantisation applies to."""
        return self.num_layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def matrix(self) -> int:
        """Of the embedding, and of the head."""
        return self.vocab_size * self.width

    @property
    def parameters(self) -> int:
        biases = self.query + 2 * self.key if self.qkv_bias else 0
        norms = 2 * self.width + (2 * self.head_width if self.head_norm else 0)
        layers = self.linear_parameters + self.num_layers * (biases + norms)
        return layers + self.width + self.matrix * (1 if self.tied else 2)

    def adapter_parameters(self, peft: AdapterSettings) -> int:
        """rank x (inputs + outputs) of every target, and with DoRA a magnitude an output."""
        if peft.kind == "none":
            return 0
        magnitudes = 1 if peft.kind == "dora" else 0
        sizes = [self.linears[target] for target in peft.targets]
        return self.num_layers * sum(peft.rank * (i + o) + magnitudes * o for i, o in sizes)

    def layer_activation_bytes(self, peft: AdapterSettings, size: int) -> int:
        """Estimate of what one position keeps in one layer while it is differentiated.

        The two norms' inputs in float32, 8 x width; attention, size x (q, repeated k and v, output: 4 x query); the
        feed-forward part, size x (gate, its SiLU, up: 3 x ffn); for every adapted map its input in float32 and in
        `size`, and with DoRA both of its outputs. Frozen maps keep nothing; without adapters every map keeps its input.
        """
        common = 8 * self.width + size * (4 * self.query + 3 * self.ffn_width)
        if peft.kind == "none":
            return common + size * (2 * self.width + self.query + self.ffn_width)
        adapted = [self.linears[target] for target in peft.targets]
        outputs = 2 * FLOAT32 if peft.kind == "dora" else 0
        return common + sum((FLOAT32 + size) * i + outputs * o for i, o in adapted)


def numbers_of(model: HFSettings, vocab_size: int) -> HFNumbers:
    """From the folder's config.json where there is one, else from `model.shape`; vocab_size for random weights."""
    from sm_diffusion.denoisers.pretrained.loading import LAYOUTS, read_config

    if model.path is not None and Path(model.path).is_dir():
        config = read_config(Path(model.path))
        layout = LAYOUTS.get(str(config.get("model_type")))
        if layout is None:
            kind = config.get("model_type")
            raise UserError(f"model.path={model.path}: model_type={kind}: not one of {', '.join(LAYOUTS)}")
        lm = layout.configure(config)
    else:
        rows = model.shape.vocab_size or (vocab_size if model.path is None else 0)
        if not rows:
            raise UserError(f"model.path={model.path}: its sizes are not known here; give model.shape.* or a folder")
        lm = model.shape.config(rows)
    head_width = head_width_of(lm)
    return HFNumbers(
        vocab_size=lm.vocab_size,
        width=lm.hidden_size,
        ffn_width=lm.intermediate_size,
        num_layers=lm.num_hidden_layers,
        query=lm.num_attention_heads * head_width,
        key=lm.num_key_value_heads * head_width,
        head_width=head_width,
        qkv_bias=lm.model_type == "qwen2",
        head_norm=lm.model_type == "qwen3",
        tied=lm.tie_word_embeddings,
    )


def head_width_of(lm: Any) -> int:
    """head_dim of the configuration, where it gives one, else width / heads."""
    given = lm.to_dict().get("head_dim")
    return int(given or lm.hidden_size // lm.num_attention_heads)


@dataclass(frozen=True)
class HFPlan:
    """All numbers of one configuration. memory: part -> (bytes a device, how they come about)."""

    numbers: HFNumbers
    trainable: int
    flops: Flops
    steps: int
    positions_per_step: int
    memory: Mapping[str, tuple[float, str]]
    layout: plan_scale.Layout
    step: plan_scale.Step

    @property
    def total_flops(self) -> float:
        return self.flops.training * self.steps * self.positions_per_step

    @property
    def total_bytes(self) -> float:
        return sum(size for size, _ in self.memory.values())


def padded_positions(data: DataSettings) -> int:
    """Positions of the longest possible row."""
    from sm_diffusion.data.chat.collate import EXTRA_PADDING, padded_length
    from sm_diffusion.data.chat.settings import ChatSettings

    return padded_length(data.length, EXTRA_PADDING - 1) if isinstance(data, ChatSettings) else data.length


def make_plan(config: Any, *, vocab: int | None, on_gpu: bool, num_devices: int) -> HFPlan:
    """config: TrainConfig with an HFSettings. num_devices: data-parallel processes."""
    from sm_diffusion.app.build import build_objective

    model, peft, data = config.model, config.peft, config.data
    own = model.path is None and not model.shape.vocab_size
    numbers = numbers_of(model, (vocab or vocabulary(data.tokenizer)) if own else 0)
    length = padded_positions(data)
    share = build_objective(config, mask_id=0).masked_share()
    blocks = 2 * numbers.linear_parameters + numbers.num_layers * 4 * length * numbers.query
    forward = blocks + share * 2 * numbers.matrix
    p_sm = config.variant.extra_pass_share(config.trainer.max_steps)
    backward = forward if peft.kind != "none" else 2 * forward  # frozen matrices need no gradient of their own
    recomputed = blocks if model.activation_checkpointing else 0
    flops = Flops(forward, forward + backward + recomputed + p_sm * forward, p_sm * forward)
    micro = max(1, data.micro_batch(num_devices))
    positions = micro * length
    trainable = numbers.adapter_parameters(peft) or numbers.parameters
    memory = memory_parts(config, numbers, positions=positions, masked=math.ceil(share * positions), on_gpu=on_gpu)
    layout = hf_layout(numbers, peft, size=BFLOAT16 if model.dtype == "bfloat16" else FLOAT32)
    step = plan_scale.step_of(config, num_devices=num_devices, micro_batch=micro, p_sm=p_sm)
    memory = shared_out(memory, layout, strategy=plan_scale.strategy_key(config.strategy), step=step)
    steps, per_step = config.trainer.max_steps, data.global_batch_sequences * length
    return HFPlan(numbers, trainable, flops, steps, per_step, memory, layout, step)


def hf_layout(numbers: HFNumbers, peft: AdapterSettings, *, size: int) -> plan_scale.Layout:
    """Layers are the units; frozen weights are gathered and send no gradient. size: bytes of a weight. Adapters are
    float32, and so are their gradients."""
    root = numbers.width + numbers.matrix * (1 if numbers.tied else 2)
    blocks, adapters = numbers.parameters - root, numbers.adapter_parameters(peft)
    frozen = peft.kind != "none"
    return plan_scale.Layout(
        blocks=blocks,
        num_blocks=numbers.num_layers,
        root=root,
        trained_blocks=adapters if frozen else blocks,
        trained_root=0 if frozen else root,
        gather_bytes=size,
        root_bytes=size,
        reduce_bytes=FLOAT32,
        gradient_bytes=FLOAT32 if frozen else size,
    )


def shared_out(
    memory: Mapping[str, tuple[float, str]], layout: plan_scale.Layout, *, strategy: str, step: plan_scale.Step
) -> dict[str, tuple[float, str]]:
    """The memory once what the strategy shards is split, and how it comes about."""
    whole = {part: size for part, (size, _) in memory.items()}
    sizes = plan_scale.on_each_device(whole, layout, strategy=strategy, step=step)
    reasons = {part: why for part, (_, why) in memory.items()}
    reasons[plan_scale.GATHERED] = "the rest and two layers, and gradients of what is trained there"
    return {
        part: (size, f"({reasons[part]}) / {step.num_devices}" if size != whole.get(part, size) else reasons[part])
        for part, size in sizes.items()
    }


def memory_parts(
    config: Any, numbers: HFNumbers, *, positions: int, masked: int, on_gpu: bool
) -> dict[str, tuple[float, str]]:
    """Part -> (bytes, arithmetic)."""
    model, peft = config.model, config.peft
    size = BFLOAT16 if model.dtype == "bfloat16" else FLOAT32
    adapters, total, layers = numbers.adapter_parameters(peft), numbers.parameters, numbers.num_layers
    parts: dict[str, tuple[float, str]] = {}
    if peft.quantize:
        small = numbers.linear_parameters
        weights = small * NF4_BITS / 8 + (total - small) * size
        parts["base weights"] = (weights, f"{small:,} x {NF4_BITS} bits + {total - small:,} x {size}")
    else:
        parts["base weights"] = (total * size, f"{total:,} x {size} ({model.dtype})")
    if adapters:
        why = f"{adapters:,} x 4 x (weight, gradient, AdamW's 2 moments)"
        parts["adapters and optimizer"] = (adapters * 4 * FLOAT32, why)
    else:
        parts["gradients"] = (total * size, f"{total:,} x {size}")
        parts["AdamW moments"] = (total * 2 * size, f"{total:,} x 2 x {size}")
    copies = (1 if config.callbacks.ema.enabled else 0) * (adapters * FLOAT32 or total * size)
    if copies:
        parts["EMA"] = (copies, "one copy of what is trained")
    layer = numbers.layer_activation_bytes(peft, size)
    if model.activation_checkpointing:
        kept = positions * layers * numbers.width * size
        parts["layer inputs"] = (kept, f"{positions:,} positions x {layers} layers x {numbers.width} x {size}")
        parts["one layer, recomputed"] = (positions * layer, f"{positions:,} positions x {layer:,} (estimate)")
    else:
        why = f"{positions:,} positions x {layers} x {layer:,} (estimate)"
        parts["activations"] = (positions * layers * layer, why)
    if peft.kind == "dora":
        inputs, outputs = max((numbers.linears[name] for name in peft.targets), key=lambda pair: pair[0] * pair[1])
        parts["DoRA's norm of a map"] = (4 * FLOAT32 * inputs * outputs, f"4 x {inputs:,} x {outputs:,} x 4")
    chunk = logits_chunk_bytes(numbers.vocab_size, max(1, masked), "cuda" if on_gpu else "cpu")
    parts["one chunk of logits"] = (2 * chunk, f"{chunk // FLOAT32:,} logits x 4, and as much for probabilities")
    if on_gpu:
        parts["CUDA context"] = (plan_scale.CONTEXT_BYTES, "assumed")
    return parts


def plan_text(plan: HFPlan, *, report: Sequence[str]) -> str:
    """The plan as people read it, at most 110 columns. report: what holds for any network."""
    numbers, flops = plan.numbers, plan.flops
    verdict = "fits" if plan.total_bytes <= LIMIT_BYTES else "does not fit"
    lines = [
        f"parameters            {numbers.parameters:,} at vocabulary {numbers.vocab_size:,}",
        f"  embedding and head  {numbers.matrix * (1 if numbers.tied else 2):,}",
        f"  matrices of layers  {numbers.linear_parameters:,}",
        f"  trained             {plan.trainable:,} ({plan.trainable / numbers.parameters:.2%})",
        f"FLOPs a position      forward {human(flops.forward)}, training step {human(flops.training)}",
        f"  of it, extra pass   {human(flops.extra)} ({flops.extra_share:.1%} of the training step)",
        f"run                   {plan.steps:,} steps of at most {plan.positions_per_step:,} positions, "
        f"{human(plan.total_flops)}FLOP",
        "memory a device",
        *(f"  {part:<24} {human_bytes(size):>11}  {why}" for part, (size, why) in plan.memory.items()),
        f"  {'sum':<24} {human_bytes(plan.total_bytes):>11}  {plan.total_bytes / 1e9:.1f} GB: {verdict} in 40 GB",
    ]
    return "\n".join([*lines, *report])
