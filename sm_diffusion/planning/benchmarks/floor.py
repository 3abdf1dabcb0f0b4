"""What a sampling run must multiply whatever its code: the network's passes, and the head's rows.

The rows are counted in a run. A memory (top-k, entropy over the whole vocabulary) needs all logits of its position and
changes whenever any token or memory of its text changed, so no row of a soft-masked step can be left out; MDLM needs
the logits of the positions that are drawn, and only these. The products alone are then timed, with the same shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sm_diffusion.denoisers.dit.model import DiT
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.contracts import Head
from sm_diffusion.diffusion.readouts.base import Summarize
from sm_diffusion.diffusion.readouts.draw import Draw
from sm_diffusion.diffusion.readouts.scratch import chunk_rows


class Pass(NamedTuple):
    """One forward pass: texts it ran over, and positions whose logits were needed."""

    texts: int
    head_rows: int


@contextmanager
def counted(network: DiT) -> Iterator[list[Pass]]:
    """The passes that the network makes inside the block, in order."""
    passes: list[Pass] = []

    def note(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs, readout = args
        assert isinstance(readout, Draw)
        needed = [readout.positions_N]
        if isinstance(readout.remember, Summarize):
            needed.append(readout.remember.positions_N)
        ids = inputs if isinstance(inputs, Tensor) else inputs[0]
        passes.append(Pass(ids.shape[0], torch.unique(torch.cat(needed)).numel()))

    handle = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield passes
    finally:
        handle.remove()


def arithmetic(network: DiT, passes: Sequence[Pass], *, length: int, steps: int) -> dict[str, float]:
    """Of one step on average: GFLOP (10^9, 2 per multiply-add) of the blocks and of the head, and the head's rows."""
    blocks, head = network.flops_per_token(length)
    texts, rows = sum(one.texts for one in passes) / steps, sum(one.head_rows for one in passes) / steps
    forward_gflop, head_gflop = texts * length * blocks / 1e9, rows * head / 1e9
    return {
        "head_rows": rows,
        "forward_gflop": forward_gflop,
        "head_gflop": head_gflop,
        "gflop": forward_gflop + head_gflop,
    }


def products_alone(network: DiT, passes: Sequence[Pass], *, length: int) -> Callable[[], None]:
    """A function that makes these passes and head products, and nothing else: no draw, no statistics, no memory."""
    weight_VD = network.output_layer.linear.weight.detach()
    vocab_size, width = weight_VD.shape
    most = min(chunk_rows(vocab_size, "cpu"), max((one.head_rows for one in passes), default=1))
    hidden_CD = torch.randn(most, width)
    buffer = torch.empty(vocab_size * most)

    def nothing(hidden_BLD: Tensor, head: Head) -> None:
        return None

    def run() -> None:
        with torch.no_grad():
            for one in passes:
                network(torch.zeros(one.texts, length, dtype=torch.int64), nothing, mixing=mixing.linear)
                for start in range(0, one.head_rows, most):
                    rows = min(most, one.head_rows - start)
                    out_VC = buffer[: vocab_size * rows].view(vocab_size, rows)
                    torch.mm(weight_VD, hidden_CD[:rows].t(), out=out_VC)

    return run
