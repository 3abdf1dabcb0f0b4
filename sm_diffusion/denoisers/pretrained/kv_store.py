"""Keys and values kept from one denoising step to the next, and the window of positions that are computed anew.

A transformers attention layer hands its new keys and values to an object with `update` and attends to what that
returns. `Window` is such an object: it writes the window's keys and values into the store and returns those of the
whole row, so that a few positions attend to all of them although only those few are computed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class KeyValueStore:
    """Rotated keys and values of every layer, (B, L, heads, head width) each; 2 x layers x L x heads x head width
    numbers a row (Dream-7B in bfloat16: 56 KiB a position)."""

    def __init__(self, num_rows: int, length: int) -> None:
        self.num_rows = num_rows
        self.length = length
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, like_RHWd: Tensor) -> tuple[Tensor, Tensor]:
        """(keys, values) of a layer, zeros at first."""
        if index not in self._layers:
            shape = (self.num_rows, self.length, like_RHWd.shape[1], like_RHWd.shape[3])
            self._layers[index] = (like_RHWd.new_zeros(shape), like_RHWd.new_zeros(shape))
        return self._layers[index]


class Window:
    """Some positions of some rows.

    rows_R:       int64, rows of the store.
    positions_RW: int64, their positions that are computed. A row with fewer than W repeats one of its own: it is
                  computed from the same input, so it writes what is there already.
    """

    def __init__(self, store: KeyValueStore, rows_R: Tensor, positions_RW: Tensor) -> None:
        self.store = store
        self.rows_R = rows_R
        self.positions_RW = positions_RW

    def update(self, key_RHWd: Tensor, value_RHWd: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Called by an attention layer: (keys, values) of whole rows, (R, heads, L, head width)."""
        keys_BLHd, values_BLHd = self.store.layer(layer_idx, key_RHWd)
        place = (self.rows_R[:, None], self.positions_RW)
        keys_BLHd[place] = key_RHWd.transpose(1, 2)
        values_BLHd[place] = value_RHWd.transpose(1, 2)
        if len(self.rows_R) < self.store.num_rows:
            keys_BLHd, values_BLHd = keys_BLHd[self.rows_R], values_BLHd[self.rows_R]
        return keys_BLHd.transpose(1, 2), values_BLHd.transpose(1, 2)

    def spread(self, hidden_RWD: Tensor) -> Tensor:
        """(R, L, D): the window's hidden states at their positions, zeros elsewhere."""
        hidden_RLD = hidden_RWD.new_zeros(hidden_RWD.shape[0], self.store.length, hidden_RWD.shape[2])
        rows_R1 = torch.arange(hidden_RWD.shape[0], device=hidden_RWD.device)[:, None]
        hidden_RLD[rows_R1, self.positions_RW] = hidden_RWD
        return hidden_RLD
