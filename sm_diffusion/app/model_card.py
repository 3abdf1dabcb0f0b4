"""What a model or adapter folder says of itself beside its weights: `smd_model.json`.

    {"tokenizer": {"kind": "hub", "mask": "token"},   kind: char | byte | bpe | hub; null: files of transformers
     "chat": "template",                              lines | template; null: trained on plain text
     "length": 2048,                                  tokens of the longest text; null: not known
     "soft_mask": true,                               false: trained without feedback
     "mixing": "spherical",                           of the soft mask: linear | spherical; null without one
     "objective": {"name": "sft", ...},               what it was trained for; null: not known
     "schedule": {"name": "log_linear", ...}}         its noise schedule; null: not known

Older folders lack the last four keys and say true or false for chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sm_diffusion.config.nodes import from_plain, plain
from sm_diffusion.config.root import TrainConfig
from sm_diffusion.files import read_json, write_json, write_text
from sm_diffusion.types import UserError

CARD_FILE = "smd_model.json"


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """The content of the file. tokenizer_kind, length, mixing, objective, schedule None: the folder does not say."""

    tokenizer_kind: str | None = None
    mask: str = "auto"
    chat: str | None = None
    length: int | None = None
    soft_mask: bool | None = None
    mixing: str | None = None
    objective: Any = None
    schedule: Any = None

    def as_json(self) -> dict[str, Any]:
        return {
            "tokenizer": None if self.tokenizer_kind is None else {"kind": self.tokenizer_kind, "mask": self.mask},
            "chat": self.chat,
            "length": self.length,
            "soft_mask": self.soft_mask,
            "mixing": self.mixing,
            "objective": None if self.objective is None else plain(self.objective, "objective"),
            "schedule": None if self.schedule is None else plain(self.schedule, "schedule"),
        }


def card_of_run(run: TrainConfig, *, chat: str | None) -> ModelCard:
    """The card of what a run trained. chat: the kind of its chat format; None: plain text."""
    soft = run.variant.feeds_back
    return ModelCard(
        tokenizer_kind=run.data.tokenizer.kind,
        mask=run.data.tokenizer.mask,
        chat=chat,
        length=run.data.length,
        soft_mask=soft,
        mixing=run.soft_mask.mixing if soft else None,
        objective=run.objective,
        schedule=run.schedule,
    )


def write_card(folder: Path, card: ModelCard, files: Mapping[str, str]) -> None:
    """Put the card, and the files of the tokenizer, beside the weights."""
    for name, text in files.items():
        write_text(folder / Path(name).name, text)
    write_json(folder / CARD_FILE, card.as_json())


def read_card(folder: Path) -> ModelCard | None:
    """None where there is no such file. UserError for one that is malformed."""
    path = folder / CARD_FILE
    if not path.is_file():
        return None
    card = read_json(path, advice="write it again with smd convert")
    try:
        tokenizer, chat, length = card["tokenizer"], card["chat"], card["length"]
        kind = None if tokenizer is None else str(tokenizer["kind"])
        if isinstance(chat, bool):
            chat = ("template" if kind == "hub" else "lines") if chat else None
        objective, schedule = card.get("objective"), card.get("schedule")
        return ModelCard(
            tokenizer_kind=kind,
            mask="auto" if tokenizer is None else str(tokenizer["mask"]),
            chat=chat,
            length=None if length is None else int(length),
            soft_mask=card.get("soft_mask"),
            mixing=card.get("mixing"),
            objective=None if objective is None else from_plain("objective", objective),
            schedule=None if schedule is None else from_plain("schedule", schedule),
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{path}: not readable ({error}); write it again with smd convert") from None
