"""What a program says, and what libraries may say."""

from __future__ import annotations

import logging
import sys
import warnings

from lightning.pytorch.utilities import rank_zero_only


def is_first_rank() -> bool:
    """True in the one process that writes files and speaks; known before any process group exists."""
    return int(rank_zero_only.rank or 0) == 0  # type: ignore[attr-defined]


def say(text: str) -> None:
    """A line for the person who started the run, once for all ranks."""
    if is_first_rank():
        print(text, file=sys.stderr, flush=True)


# Notices of libraries about what is intended here, or about their own insides.
_NOTICES = (
    ".*does not have many workers.*",
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*DeepSpeed handles gradient clipping internally.*",  # by the same norm, from the same setting
    ".*You have overridden `on_before_batch_transfer`.*",
    ".*LeafSpec.*",
    ".*Found keys that are not in the model state dict.*",
    ".*sync_dist=True.*",  # what is logged has been summed over the ranks already
)


def quiet_libraries() -> None:
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for notice in _NOTICES:
        warnings.filterwarnings("ignore", message=notice)
    # The one notice worth having: which process of the run ended, and how.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
