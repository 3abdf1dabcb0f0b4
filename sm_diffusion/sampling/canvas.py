"""What a sampler starts from: prompts, blanks to fill, and padding, all as rows of ids with masks in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sm_diffusion.types import UserError

PADDING_SIDES = ("left", "right")


@dataclass(frozen=True)
class Canvas:
    """Rows to be completed: every position that holds the mask token, and is not padding, gets a token.

    ids_BL:            int64.
    attention_mask_BL: bool, False at padding, which no token attends to. None: no padding.
    """

    ids_BL: Tensor
    attention_mask_BL: Tensor | None = None

    @property
    def positions_BL(self) -> Tensor:
        """int64, each position's rank among the real tokens of its row; padding repeats a neighbour's."""
        if self.attention_mask_BL is None:
            return torch.arange(self.ids_BL.shape[1], device=self.ids_BL.device).expand(self.ids_BL.shape)
        return (self.attention_mask_BL.long().cumsum(-1) - 1).clamp_min(0)

    def open_BL(self, mask_id: int) -> Tensor:
        """bool, positions to be filled."""
        masked_BL = self.ids_BL == mask_id
        return masked_BL if self.attention_mask_BL is None else masked_BL & self.attention_mask_BL

    def texts(self, ids_BL: Tensor) -> list[list[int]]:
        """The rows of `ids_BL` as lists, without padding."""
        if self.attention_mask_BL is None:
            return [list(row) for row in ids_BL.tolist()]
        pairs = zip(ids_BL.cpu(), self.attention_mask_BL.cpu(), strict=True)
        return [list(ids_L[real_L].tolist()) for ids_L, real_L in pairs]


def blank(num_rows: int, length: int, *, mask_id: int, device: torch.device | str = "cpu") -> Canvas:
    """Unconditional generation: `num_rows` rows of `length` masks."""
    if num_rows < 1 or length < 1:
        raise UserError(f"nothing to generate: {num_rows} rows of {length} tokens")
    return Canvas(torch.full((num_rows, length), mask_id, dtype=torch.int64, device=device))


def from_prompts(
    prompts: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    mask_id: int,
    max_length: int | None = None,
    padding_side: str = "left",
    pad_id: int = 0,
    device: torch.device | str = "cpu",
) -> Canvas:
    """Prompt, then `new_tokens` masks; rows of unequal length are padded on `padding_side`.

    max_length: the longest row the model takes, prompt and new tokens together.
    Raises UserError for a prompt that holds the mask token or does not fit.
    """
    if new_tokens < 1:
        raise UserError(f"sampler.new_tokens={new_tokens}: must be >= 1")
    for row, prompt in enumerate(prompts):
        if mask_id in prompt:
            raise UserError(f"prompt {row} holds the mask token {mask_id}: remove it, or use infilling to fill blanks")
    rows = [[*prompt, *[mask_id] * new_tokens] for prompt in prompts]
    for row, prompt in enumerate(prompts):
        if max_length is not None and len(rows[row]) > max_length:
            raise UserError(
                f"prompt {row} of {len(prompt)} tokens plus {new_tokens} new ones exceeds the model's length "
                f"{max_length}: shorten the prompt or set sampler.new_tokens to {max_length - len(prompt)} or less"
            )
    return _pad(rows, padding_side, pad_id, device)


def from_rows(
    rows: Sequence[Sequence[int]],
    *,
    mask_id: int,
    max_length: int | None = None,
    padding_side: str = "left",
    pad_id: int = 0,
    device: torch.device | str = "cpu",
) -> Canvas:
    """Infilling: rows with the mask token wherever a token is wanted."""
    for row, ids in enumerate(rows):
        if mask_id not in ids:
            raise UserError(f"row {row} has nothing to fill: put the mask token {mask_id} where tokens are wanted")
        if max_length is not None and len(ids) > max_length:
            raise UserError(f"row {row} of {len(ids)} tokens exceeds the model's length {max_length}: shorten it")
    return _pad(rows, padding_side, pad_id, device)


def _pad(rows: Sequence[Sequence[int]], side: str, pad_id: int, device: torch.device | str) -> Canvas:
    if side not in PADDING_SIDES:
        raise UserError(f"padding_side={side}: choose one of {', '.join(PADDING_SIDES)}")
    if not rows:
        raise UserError("nothing to generate: no prompts were given")
    length = max(len(row) for row in rows)
    ids_BL = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    real_BL = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, row in enumerate(rows):
        span = slice(length - len(row), length) if side == "left" else slice(0, len(row))
        ids_BL[index, span] = torch.tensor(row, dtype=torch.int64)
        real_BL[index, span] = True
    return Canvas(ids_BL.to(device), None if bool(real_BL.all()) else real_BL.to(device))
