"""Settings of pretrained backbones, adapters and chat data."""

from __future__ import annotations

from dataclasses import dataclass, field

from sm_diffusion.config.schema_data import DataConfig
from sm_diffusion.config.schema_model import ModelConfig
from sm_diffusion.registry import MISSING, register

PACKINGS = ("none", "block_diagonal")


@dataclass
class HFShapeConfig:
    """Sizes of a causal LM: random weights are made of them; of a published model `smd plan` reads them."""

    architecture: str = "qwen2"  # qwen2 | qwen3 | llama
    vocab_size: int = 0  # rows of the embedding; 0: the tokenizer's
    width: int = 64  # residual stream
    ffn_width: int = 128  # inner width of the feed-forward part
    num_layers: int = 2
    num_heads: int = 4  # query heads
    num_key_heads: int = 2  # key and value heads, a divisor of num_heads
    head_width: int = 0  # 0: width / num_heads
    max_length: int = 4096  # positions
    rope_theta: float = 10000.0
    tied: bool = False  # one matrix for embedding and head


@register("model", "hf")
@dataclass
class HFConfig(ModelConfig):
    """A Qwen2, Qwen3, Llama, Dream or LLaDA checkpoint, run with full attention."""

    path: str | None = None  # folder or hub id of safetensors; null: random weights of the sizes in `shape`
    revision: str | None = None  # commit of a hub id; null: the pinned one
    dtype: str = "bfloat16"  # of the weights in memory: bfloat16 | float32
    add_mask: bool = False  # adapt an autoregressive model: give it the tokenizer's mask token
    shift_logits: bool | None = None  # hidden state l - 1 predicts token l; null: as the checkpoint was trained
    init_seed: int = 0  # of random weights
    shape: HFShapeConfig = field(default_factory=HFShapeConfig)


@register("peft", "peft")
@dataclass
class PeftConfig:
    """Adapters: with any, only they and the omegas are trained, and checkpoints hold nothing else."""

    kind: str = "none"  # none | lora | dora
    rank: int = 16
    alpha: int = 16  # the adapter is scaled by alpha / rank
    dropout: float = 0.0  # probability, before the adapter
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    quantize: bool = False  # base in 4-bit NF4 (QLoRA); needs bitsandbytes


@dataclass
class ChatConfig(DataConfig):
    """Prompt-response pairs. `length` is the longest kept sample, tokens; padding comes on top."""

    validation_fraction: float = 0.05  # share of conversations
    min_response_tokens: int = 5  # shorter responses are dropped
    forbidden_tokens: list[str] = field(default_factory=lambda: ["<tool_call>", "</tool_call>"])  # samples are dropped
    pads_are_maskable: bool = True  # as published: padding is attended to, masked and trained
    packing: str = "none"  # none (a padded sample a row, as published) | block_diagonal (samples share rows unseen)
    packed_length: int | None = None  # tokens of a packed row; null: one sample of `length` with its padding


@register("data", "chat_files")
@dataclass
class ChatFilesConfig(ChatConfig):
    """.jsonl files of {"messages": [{"role": ..., "content": ...}, ...]}, the last message the assistant's."""

    paths: list[str] = MISSING
    validation_paths: list[str] = field(default_factory=list)  # empty: a share of the conversations of `paths`
    messages_field: str = "messages"


@register("data", "python_chat")
@dataclass
class PythonChatConfig(ChatConfig):
    """The running interpreter's standard library: a docstring asks for a function, its source answers."""


@dataclass
class MessageFilesConfig:
    """One part of a mix: files of conversations on the hub, or in a folder in its layout."""

    repo: str = ""
    revision: str = "main"  # branch, tag or commit; resolved to a commit once
    path: str = ""  # a folder instead of the hub
    files: list[str] = field(default_factory=lambda: ["*.parquet", "*.jsonl"])  # patterns; * crosses folders
    messages_field: str = "messages"


@register("data", "chat_mix")
@dataclass
class ChatMixConfig(ChatConfig):
    """Conversations of several parts; point a part at local files with data.parts.NAME.path=FOLDER."""

    parts: dict[str, MessageFilesConfig] = MISSING
    max_samples: int | None = 300_000  # conversations read, evenly spread; null: all
