"""Settings of backbones of transformers. The package itself is imported when one is built."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from sm_diffusion.denoisers.settings import NetworkSettings
from sm_diffusion.registry import register
from sm_diffusion.types import UserError

if TYPE_CHECKING:
    from sm_diffusion.denoisers.pretrained.hf import HFDenoiser

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ARCHITECTURES = {"qwen2": "Qwen2", "qwen3": "Qwen3", "llama": "Llama"}  # how transformers begins the names of classes


@dataclass
class HFShape:
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

    def config(self, vocab_size: int) -> Any:
        """The configuration of transformers with these sizes."""
        return self._class("Config")(
            vocab_size=vocab_size,
            hidden_size=self.width,
            intermediate_size=self.ffn_width,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            num_key_value_heads=self.num_key_heads,
            head_dim=self.head_width or self.width // self.num_heads,
            max_position_embeddings=self.max_length,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            tie_word_embeddings=self.tied,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )

    def random_lm(self, vocab_size: int) -> Any:
        """A causal LM of transformers with these sizes and random weights, drawn from torch's global stream."""
        return self._class("ForCausalLM")(self.config(vocab_size))

    def _class(self, ending: str) -> Any:
        import transformers

        return getattr(transformers, ARCHITECTURES[self.architecture] + ending)

    def problems(self) -> Iterator[str]:
        if self.architecture not in ARCHITECTURES:
            yield f"model.shape.architecture={self.architecture}: unknown; choose one of {', '.join(ARCHITECTURES)}"
        sizes = ("width", "ffn_width", "num_layers", "num_heads", "num_key_heads", "max_length")
        wrong = [name for name in sizes if vars(self)[name] < 1]
        for name in wrong:
            yield f"model.shape.{name}={vars(self)[name]}: must be positive"
        if wrong:
            return
        if self.num_heads % self.num_key_heads:
            yield f"model.shape.num_key_heads={self.num_key_heads}: must divide model.shape.num_heads={self.num_heads}"
        if not self.head_width and self.width % (2 * self.num_heads):
            yield f"model.shape.width={self.width}: must be a multiple of 2 * num_heads = {2 * self.num_heads}"


@register("model", "hf")
@dataclass
class HFSettings(NetworkSettings):
    """A Qwen2, Qwen3, Llama, Dream or LLaDA checkpoint, run with full attention."""

    takes_adapters: ClassVar[bool] = True
    takes_packed_rows: ClassVar[bool] = True

    path: str | None = None  # folder or hub id of safetensors; null: random weights of the sizes in `shape`
    revision: str | None = None  # commit of a hub id; null: the pinned one
    dtype: str = "bfloat16"  # of the weights in memory: bfloat16 | float32
    add_mask: bool = False  # adapt an autoregressive model: give it the tokenizer's mask token
    shift_logits: bool | None = None  # hidden state l - 1 predicts token l; null: as the checkpoint was trained
    init_seed: int = 0  # of random weights
    shape: HFShape = field(default_factory=HFShape)

    def build(self, *, vocab_size: int, mask_id: int) -> HFDenoiser:
        """The published weights, or random ones; UserError unless the corpus was encoded by the model's own tokenizer.

        vocab_size, mask_id: the tokenizer's.
        """
        from sm_diffusion.denoisers.pretrained.loading import check_tokenizer, open_backbone

        if self.path is None:
            return self._random(vocab_size)
        backbone = open_backbone(
            self.path,
            revision=self.revision,
            dtype=DTYPES[self.dtype],
            add_mask=self.add_mask,
            mask_id=mask_id if self.add_mask else None,
            shift_logits=self.shift_logits,
            checkpoint_blocks=self.activation_checkpointing,
        )
        check_tokenizer(backbone, size=vocab_size, mask_id=mask_id)
        backbone.denoiser.train()
        return backbone.denoiser

    def _random(self, vocab_size: int) -> HFDenoiser:
        from sm_diffusion.denoisers.pretrained.hf import HFDenoiser

        shape = self.shape
        if shape.vocab_size and shape.vocab_size < vocab_size:
            raise UserError(
                f"model.shape.vocab_size={shape.vocab_size}: the tokenizer has {vocab_size} ids: set it to 0"
            )
        with torch.random.fork_rng():
            torch.manual_seed(self.init_seed)
            lm = shape.random_lm(shape.vocab_size or vocab_size)
        return HFDenoiser(
            lm.to(DTYPES[self.dtype]),
            shift_logits=True if self.shift_logits is None else self.shift_logits,
            checkpoint_blocks=self.activation_checkpointing,
            source=f"random {self.name} (init_seed={self.init_seed})",
        )

    def problems(self) -> Iterator[str]:
        """Nothing is loaded or downloaded."""
        if self.attention not in ("auto", "sdpa"):
            yield f"model.attention={self.attention}: a backbone of transformers runs sdpa; set model.attention=auto"
        if self.dtype not in DTYPES:
            yield f"model.dtype={self.dtype}: unknown; choose one of {', '.join(DTYPES)}"
        if self.path is None:
            yield from self.shape.problems()
            if self.add_mask:
                yield "model.add_mask=true: random weights need no mask added; set model.path or model.add_mask=false"
            return
        if Path(self.path).is_dir():
            return
        if Path(self.path).is_absolute() or self.path.startswith((".", "~")):
            yield f"model.path={self.path}: there is no such folder"
            return
        from sm_diffusion.denoisers.pretrained.loading import PINNED

        if self.revision is None and self.path not in PINNED:
            yield (
                f"model.path={self.path}: neither a folder nor a pinned hub id; "
                "set model.revision to a commit hash of the repository"
            )
