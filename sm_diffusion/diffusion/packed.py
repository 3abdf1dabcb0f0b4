"""Several sequences in one row of the network, none of which sees another.

A batch is noised as (B, L), a sequence a row, and only then laid into (P, Q): so neither times nor masks depend on what
a sequence shares a row with. `places_PQ` holds at (p, q) the position in the flattened B*L, -1 at padding; the tokens
of a sequence follow each other.
"""

from __future__ import annotations

import torch
from torch import Tensor


def lay(values_BL: Tensor, places_PQ: Tensor) -> Tensor:
    """(P, Q): the values at their places. Padding holds the first value of all, which nothing may read."""
    return values_BL.flatten()[places_PQ.clamp_min(0)]


def segments(places_PQ: Tensor, length: int) -> Tensor:
    """int64 (P, Q): 1 + the number of the sequence at each place, 0 at padding. length: L."""
    return torch.where(places_PQ < 0, 0, places_PQ // length + 1)


def packed_positions(positions_N: Tensor, places_PQ: Tensor, num_positions: int) -> Tensor:
    """int64 (N,): indices into the flattened P*Q of positions of the flattened B*L. num_positions: B*L."""
    flat_M = places_PQ.flatten()
    where_M = torch.full((num_positions + 1,), -1, dtype=torch.int64, device=flat_M.device)
    # Padding writes into a last element of its own.
    where_M[torch.where(flat_M < 0, num_positions, flat_M)] = torch.arange(len(flat_M), device=flat_M.device)
    return where_M[positions_N]


def segment_starts(segments_BL: Tensor) -> Tensor:
    """bool (B, L): True at the first position of every segment, padding included."""
    first_B1 = torch.ones_like(segments_BL[:, :1], dtype=torch.bool)
    return torch.cat([first_B1, segments_BL[:, 1:] != segments_BL[:, :-1]], 1)


def segment_positions(segments_BL: Tensor) -> Tensor:
    """int64 (B, L): positions that begin at 0 in every segment."""
    index_L = torch.arange(segments_BL.shape[1], device=segments_BL.device)
    return index_L - torch.where(segment_starts(segments_BL), index_L, 0).cummax(1).values
