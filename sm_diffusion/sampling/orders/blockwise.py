"""Semi-autoregressive decoding (arXiv 2502.09992, section 2.4): blocks from left to right, any order within a block."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from sm_diffusion.sampling.noise import StepNoise
from sm_diffusion.sampling.orders.base import Proposal, State, UnmaskPolicy, masked_share
from sm_diffusion.types import UserError


class Blockwise(UnmaskPolicy):
    """Block k of a row holds its open positions k * block_length ... (k + 1) * block_length - 1, counted in order.

    inner: the order within a block, told only of that block. One with a number of steps of its own (`Timetable`,
           `RandomOrder`, `Origin`) spends them on every block, so the row takes blocks x steps in all. `Threshold`
           goes on to the next block when the row's current one is full, each row by itself.

    Diffusion time stays the share of the whole row that is masked, whatever the inner order says.
    """

    def __init__(self, inner: UnmaskPolicy, *, block_length: int) -> None:
        if block_length < 1:
            raise UserError(f"sampler.block_length={block_length}: must be >= 1")
        if inner.remasks:
            raise UserError("sampler.block_length: blocks do not go with a policy that masks finished tokens again")
        self.inner = inner
        self.block_length = block_length
        # A policy with a grid takes the same number of steps for any number of masks.
        one, two = (inner.max_steps(torch.ones(1, size, dtype=torch.bool)) for size in (1, 2))
        self.steps_per_block = one if one == two else None

    def max_steps(self, open_BL: Tensor) -> int:
        if self.steps_per_block is None:
            return self.inner.max_steps(open_BL)
        num_blocks = -(-int(open_BL.sum(1).max()) // self.block_length)
        return num_blocks * self.steps_per_block

    def propose(self, state: State, noise: StepNoise) -> Proposal:
        block_BL = self.current_block(state)
        step = state.step if self.steps_per_block is None else state.step % self.steps_per_block
        inside = dataclasses.replace(
            state, open_BL=state.open_BL & block_BL, masked_BL=state.masked_BL & block_BL, step=step
        )
        proposal = self.inner.propose(inside, noise)
        return proposal._replace(time_B=masked_share(state), block_BL=block_BL)

    def current_block(self, state: State) -> Tensor:
        """bool (B, L): the open positions of the block each row is in; none where the row has no such block."""
        number_BL = (state.open_BL.long().cumsum(1) - 1).clamp_min(0) // self.block_length
        if self.steps_per_block is None:
            beyond = number_BL.shape[1]
            current_B1 = torch.where(state.masked_BL, number_BL, beyond).amin(1, keepdim=True)
        else:
            current_B1 = torch.full_like(number_BL[:, :1], state.step // self.steps_per_block)
        return state.open_BL & (number_BL == current_B1)

    @property
    def remasks(self) -> bool:
        return False

    @property
    def end_time(self) -> float:
        return self.inner.end_time
