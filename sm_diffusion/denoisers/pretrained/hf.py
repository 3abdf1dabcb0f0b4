"""Qwen2, Qwen3 and Llama of the transformers package as bidirectional denoisers (Dream, LLaDA, AR-adapted models).

Nothing of transformers is replaced: its own modules run, told through their public `is_causal` attribute that attention
is full. The layers are called one by one here, so that a sharding engine, activation checkpointing and the head's
readout all happen inside one `forward`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM, PretrainedConfig, Qwen2ForCausalLM, Qwen3ForCausalLM

from sm_diffusion.denoisers.embedding import attention_flops, embed
from sm_diffusion.denoisers.pretrained.kv_store import KeyValueStore, Window
from sm_diffusion.diffusion import packed
from sm_diffusion.diffusion.contracts import Denoiser, DenoiserInput, Head, Mixing, Readout
from sm_diffusion.diffusion.parameterization import Parameterization, Unconstrained
from sm_diffusion.types import UserError

CausalLM = Qwen2ForCausalLM | Qwen3ForCausalLM | LlamaForCausalLM


@dataclass(frozen=True, kw_only=True)
class CheckpointLayout:
    """How a published checkpoint maps onto a model of transformers.

    model_class:  which model.
    configure:    its configuration, from the decoded config.json; UserError where the checkpoint asks for something
                  the model cannot do.
    rename:       the model's parameter name, from the checkpoint's; any other name is returned as it is.
    shift_logits: hidden states at l - 1 predict token l.
    """

    model_class: type[CausalLM]
    configure: Callable[[Mapping[str, Any]], PretrainedConfig]
    rename: Callable[[str], str]
    shift_logits: bool


def pick(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """{our name: value} of the listed settings of a config.json; UserError lists those it lacks."""
    missing = [theirs for theirs in names.values() if theirs not in config]
    if missing:
        raise UserError(f"config.json lacks {', '.join(missing)}")
    return {ours: config[theirs] for ours, theirs in names.items()}


def position_ids(attention_mask_BL: Tensor) -> Tensor:
    """int64 (B, L): the rank of every real token among its row's real tokens, 0 first; padding gets 0 or its left
    neighbour's. A row then sees the same rotary angles whatever it is padded with, on either side.

    Dream computes the same for real tokens (padding: 1); no real token attends to padding, so that differs in nothing.
    With segments instead of a mask the ranks begin at 0 in each.
    """
    if attention_mask_BL.dtype != torch.bool:
        return packed.segment_positions(attention_mask_BL)
    return (attention_mask_BL.long().cumsum(-1) - 1).clamp_min(0)


def pair_mask(attention_mask_BL: Tensor) -> Tensor:
    """bool (B, 1, 1 or L, L): which positions attend to which.

    Padding beside segments attends to itself, so that no row of the softmax is empty; nothing else sees it.
    """
    if attention_mask_BL.dtype == torch.bool:
        return attention_mask_BL[:, None, None, :]
    return attention_mask_BL[:, None, :, None] == attention_mask_BL[:, None, None, :]


def shift_hidden(hidden_BLD: Tensor, attention_mask_BL: Tensor | None) -> Tensor:
    """out[l] = hidden[l - 1]: the hidden state that predicts token l in a model adapted from an autoregressive one.

    A row's (or segment's) first real token keeps its own hidden state (Dream: position 0 does). Nothing of padding or
    of a neighbour leaks into it.
    """
    shifted_BLD = torch.cat([hidden_BLD[:, :1], hidden_BLD[:, :-1]], 1)
    if attention_mask_BL is None:
        return shifted_BLD
    if attention_mask_BL.dtype != torch.bool:
        return torch.where(packed.segment_starts(attention_mask_BL)[..., None], hidden_BLD, shifted_BLD)
    before_BL = torch.cat([torch.zeros_like(attention_mask_BL[:, :1]), attention_mask_BL[:, :-1]], 1)
    return torch.where(before_BL[..., None], shifted_BLD, hidden_BLD)


class HFDenoiser(Denoiser):
    """A causal LM of transformers with full attention.

    lm:                Qwen2, Qwen3 or Llama with a language-model head; it is modified (attention made full).
    shift_logits:      hidden states at l - 1 predict token l (Dream, and every model adapted from an autoregressive
                       one without retraining); False: at l (LLaDA).
    parameterization:  what a logit means. None: logits as they are, as Dream and LLaDA use them.
    checkpoint_blocks: recompute every layer in the backward pass.
    source:            where the weights came from, for messages and adapter files.
    """

    def __init__(
        self,
        lm: CausalLM,
        *,
        shift_logits: bool,
        parameterization: Parameterization | None = None,
        checkpoint_blocks: bool = False,
        source: str = "",
    ) -> None:
        super().__init__()
        if not isinstance(lm, CausalLM):
            raise UserError(f"{type(lm).__name__} cannot be a denoiser: use a Qwen2, Qwen3 or Llama causal LM")
        lm.set_attn_implementation("sdpa")
        for layer in lm.model.layers:
            layer.self_attn.is_causal = False
        self.lm = lm
        self.shift_logits = shift_logits
        self.parameterization = Unconstrained() if parameterization is None else parameterization
        self.checkpoint_blocks = checkpoint_blocks
        self.source = source
        self.adapter: Any = None  # what `peft.attach` gave, where the configuration asked for one
        self._window: Window | None = None

    def forward(
        self,
        inputs: DenoiserInput,
        readout: Readout,
        *,
        mixing: Mixing,
        sigma_B: Tensor | None = None,
        attention_mask_BL: Tensor | None = None,
    ) -> Any:
        embeds_BLD = embed(self.lm.model.embed_tokens.weight, inputs, mixing)
        hidden_BLD = self.hidden_states(embeds_BLD, attention_mask_BL)
        if self._window is not None:
            hidden_BLD = self._window.spread(hidden_BLD)
        if self.shift_logits:
            hidden_BLD = shift_hidden(hidden_BLD, attention_mask_BL)
        return readout(hidden_BLD, Head(self.lm.lm_head.weight, self.lm.lm_head.bias, self.parameterization))

    def hidden_states(self, embeds_BLD: Tensor, attention_mask_BL: Tensor | None = None) -> Tensor:
        """Final-norm hidden states (B, L, D), not shifted; padding positions hold garbage that nothing reads.

        Within `windowed`, those of the window's positions only, (R, W, D).
        UserError for sequences longer than the model's positions.
        """
        window = self._window
        batch, length = embeds_BLD.shape[0], embeds_BLD.shape[1] if window is None else window.store.length
        limit = self.lm.config.max_position_embeddings
        if length > limit:
            raise UserError(f"a sequence of {length} tokens is too long: {self.source or 'the model'} takes {limit}")
        if attention_mask_BL is None:
            positions_BL, mask_B11L = torch.arange(length, device=embeds_BLD.device)[None].expand(batch, -1), None
        else:
            positions_BL, mask_B11L = position_ids(attention_mask_BL), pair_mask(attention_mask_BL)
        if window is not None:
            positions_BL = positions_BL.gather(1, window.positions_RW)
        rotary = self.lm.model.rotary_emb(embeds_BLD, positions_BL)
        hidden_BLD = embeds_BLD
        for layer in self.lm.model.layers:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                hidden_BLD = checkpoint(_run_layer, layer, hidden_BLD, rotary, mask_B11L, use_reentrant=False)
            else:
                hidden_BLD = _run_layer(layer, hidden_BLD, rotary, mask_B11L, window)
        normed_BLD: Tensor = self.lm.model.norm(hidden_BLD)
        return normed_BLD

    def new_store(self, num_rows: int, length: int) -> KeyValueStore:
        """Room for the keys and values of `num_rows` rows."""
        return KeyValueStore(num_rows, length)

    @contextmanager
    def windowed(self, store: KeyValueStore, rows_R: Tensor, positions_RW: Tensor) -> Iterator[None]:
        """Within it, `forward` computes these positions (inputs of shape (R, W)), attends to the stored keys
        and values of the other positions, and gives its readout (R, L, D), zeros elsewhere. The mask stays (R, L).

        With `shift_logits` the window must hold the real left neighbour of every position that is read.
        """
        self._window = Window(store, rows_R, positions_RW)
        try:
            yield
        finally:
            self._window = None

    def input_embedding(self) -> nn.Module:
        embedding: nn.Module = self.lm.model.embed_tokens
        return embedding

    def shard_units(self) -> Sequence[nn.Module]:
        return list(self.lm.model.layers)

    def flops_per_token(self, length: int) -> tuple[int, int]:
        """(layers, head): forward FLOPs of one position; adapters are not counted."""
        config = self.lm.config
        attention = self.lm.model.layers[0].self_attn
        width, heads = config.hidden_size, config.num_attention_heads * attention.head_dim
        keys = attention.k_proj.out_features
        projections = 2 * width * (2 * heads + 2 * keys)
        layer = projections + 6 * width * config.intermediate_size + attention_flops(length, heads)
        return config.num_hidden_layers * layer, 2 * width * config.vocab_size


def _run_layer(
    layer: nn.Module,
    hidden_BLD: Tensor,
    rotary: tuple[Tensor, Tensor],
    mask_B11L: Tensor | None,
    window: Window | None = None,
) -> Tensor:
    out_BLD: Tensor = layer(
        hidden_BLD, attention_mask=mask_B11L, position_embeddings=rotary, past_key_values=window
    )
    return out_BLD


def add_mask_token(lm: CausalLM, mask_id: int) -> None:
    """Make `mask_id` a mask token: the matrices grow to mask_id + 1 rows if they must, and its input row becomes the
    mean of the rows before it (Hewitt 2021: the mean of all embeddings is the safe start of a new token).

    Its row of an untied head is the mean too. The model must be whole (not sharded, not on the meta device).
    """
    if mask_id <= 0:
        raise UserError(f"mask_id={mask_id}: set it to the id of the mask token, > 0")
    if mask_id >= lm.config.vocab_size:
        lm.resize_token_embeddings(mask_id + 1, mean_resizing=False)
    with torch.no_grad():
        for weight_VD in {lm.model.embed_tokens.weight, lm.lm_head.weight}:
            weight_VD[mask_id] = weight_VD[:mask_id].float().mean(0).to(weight_VD.dtype)
