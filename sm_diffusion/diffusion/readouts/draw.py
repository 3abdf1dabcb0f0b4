"""The readout of sampling: a token where one is drawn, a memory where soft-masking needs one, in one pass of the head.

The two sets of positions may overlap (confidence orders) or not (orders chosen beforehand). Their union is walked
once, a chunk of logits at a time, sorted so that both sets are contiguous.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from sm_diffusion.diffusion.contracts import Head, Readout
from sm_diffusion.diffusion.readouts import chunked
from sm_diffusion.diffusion.readouts.base import Summarize, scatter_memory
from sm_diffusion.diffusion.readouts.scratch import Scratch
from sm_diffusion.types import LogitsMemory, Memory

_SLICE_ROWS = 32  # rows whose probabilities are held beside one chunk of logits


class TokenRule(Protocol):
    """How a token is taken from a row of constrained logits."""

    def __call__(self, logits_CV: Tensor, positions_C: Tensor) -> tuple[Tensor, Tensor]:
        """(token ids int64 (C,), confidences float64 (C,)) of a chunk.

        logits_CV:   float32, constrained, padded with NEGATIVE columns; may be overwritten.
        positions_C: int64, index of every row into the flattened B*L.
        """


class Drawn(NamedTuple):
    """What `Draw` returns.

    ids_BL:        int64, the drawn token; 0 where none was drawn.
    confidence_BL: float64, the rule's confidence in it; -inf where none was drawn.
    memory:        the prediction to feed back, or None.
    """

    ids_BL: Tensor
    confidence_BL: Tensor
    memory: Memory | LogitsMemory | None


class Draw:
    """Draw tokens at some positions and remember the prediction at some (the same or others), without gradient.

    positions_N: int64 indices into the flattened B*L where a token is drawn.
    rule:        how; sees each position's logits once.
    remember:    the predictor's own memory readout (`Predictor.remember_at`). A `Summarize` shares the pass over the
                 head; any other readout runs on its own. None: nothing is remembered.
    """

    def __init__(self, positions_N: Tensor, rule: TokenRule, *, remember: Readout | None) -> None:
        self.positions_N = positions_N
        self.rule = rule
        self.remember = remember

    def __call__(self, hidden_BLD: Tensor, head: Head) -> Drawn:
        with torch.no_grad():
            if self.remember is None:
                return self._walk(hidden_BLD, head, None)
            if isinstance(self.remember, Summarize):
                return self._walk(hidden_BLD, head, self.remember)
            return self._walk(hidden_BLD, head, None)._replace(memory=self.remember(hidden_BLD, head))

    def _walk(self, hidden_BLD: Tensor, head: Head, summarize: Summarize | None) -> Drawn:
        shape = hidden_BLD.shape[:2]
        num_positions, device = shape[0] * shape[1], hidden_BLD.device
        ids_M = torch.zeros(num_positions, dtype=torch.int64, device=device)
        confidence_M = torch.full((num_positions,), -torch.inf, dtype=torch.float64, device=device)
        union_N, num_drawn, first_remembered = self._order(num_positions, summarize, device)
        hidden_ND = hidden_BLD.reshape(num_positions, -1).index_select(0, union_N)
        scratch = Scratch(head, hidden_ND)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for rows, hidden_CD in scratch.chunks(hidden_ND):
            logits_CV = scratch.logits(hidden_CD)
            if summarize is not None and rows.stop > first_remembered:
                # Before the rule, which may overwrite the logits; in slices, to keep their probabilities small.
                for start in range(max(0, first_remembered - rows.start), logits_CV.shape[0], _SLICE_ROWS):
                    part_CV = logits_CV[start : start + _SLICE_ROWS]
                    parts.append(chunked.summarize_rows(part_CV, summarize.top_k, torch.empty_like(part_CV)))
            if rows.start < num_drawn:
                positions_C = union_N[rows.start : min(rows.stop, num_drawn)]
                ids_M[positions_C], confidence_M[positions_C] = self.rule(logits_CV[: len(positions_C)], positions_C)
        drawn = Drawn(ids_M.view(shape), confidence_M.view(shape), None)
        if summarize is None:
            return drawn
        nothing_NK = ids_M.new_zeros(0, summarize.top_k)
        parts.append((nothing_NK, nothing_NK.float(), nothing_NK[:, 0].float()))
        ids_NK, probs_NK, neg_entropy_N = (torch.cat(part) for part in zip(*parts, strict=True))
        memory = Memory(ids_NK, probs_NK, neg_entropy_N)
        return drawn._replace(memory=scatter_memory(memory, union_N[first_remembered:], shape))

    def _order(
        self, num_positions: int, summarize: Summarize | None, device: torch.device
    ) -> tuple[Tensor, int, int]:
        """(the union: drawn only, both, remembered only; how many are drawn; where the remembered begin)."""
        if summarize is None:
            return self.positions_N, len(self.positions_N), len(self.positions_N)
        drawn_M = torch.zeros(num_positions, dtype=torch.bool, device=device)
        drawn_M[self.positions_N] = True
        remembered_M = torch.zeros_like(drawn_M)
        remembered_M[summarize.positions_N] = True
        drawn_only_N = (drawn_M & ~remembered_M).nonzero().squeeze(1)
        both_N = (drawn_M & remembered_M).nonzero().squeeze(1)
        remembered_only_N = (remembered_M & ~drawn_M).nonzero().squeeze(1)
        union_N = torch.cat([drawn_only_N, both_N, remembered_only_N])
        return union_N, len(drawn_only_N) + len(both_N), len(drawn_only_N)
