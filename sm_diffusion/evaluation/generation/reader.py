"""Generative perplexity: a causal language model reads the samples as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sm_diffusion.data.tokenizers.base import EOS_TEXT
from sm_diffusion.types import UserError


class JudgedText(NamedTuple):
    """nll: nats, summed over the tokens that count.  num_tokens: how many those are (the first token has no score)."""

    nll: float
    num_tokens: int


COUNTED = ("all", "first_document")


def judged_positions(
    ids_BL: Tensor, real_BL: Tensor, end_ids: Sequence[int], counted: str = "first_document"
) -> Tensor:
    """bool (B, L-1): scored tokens among positions 1 .. L-1; position 0 is context only.

    counted:
        all: every token that is no end of text, also after one, and the row's first end of text (not if that is at
            position 0). The published rule: mdlm/diffusion.py:569-576 and s-sahoo/duo ch-1 metrics.py:164; there the
            rows of a batch are padded with ends of text, so the first pad of a row without any counts as well. Padding
            (`real_BL` false) never counts here, which equals their batches of one.
        first_document: up to and including the first end of text among positions 1 .., nothing after it.
    """
    ends = torch.tensor(list(end_ids), dtype=torch.int64, device=ids_BL.device)
    if counted == "all":
        end_BL = torch.isin(ids_BL, ends) & real_BL
        first_BL = end_BL & (end_BL.long().cumsum(-1) == 1)
        return (real_BL & (~end_BL | first_BL))[:, 1:]
    targets_BL, keep_BL = ids_BL[:, 1:], real_BL[:, 1:]
    end_BL = torch.isin(targets_BL, ends)
    return keep_BL & (end_BL.long().cumsum(-1) - end_BL.long() == 0)


@dataclass(frozen=True)
class CausalJudge:
    """A causal LM and its own tokenizer; texts are re-tokenised.

    name: as given.     max_tokens: of a text, the rest is cut off.     batch_sequences: changes no score.
    counted: which tokens count, one of COUNTED, see `judged_positions`.
    """

    name: str
    model: Any
    tokenizer: Any
    max_tokens: int = 1024
    batch_sequences: int = 4
    counted: str = "first_document"

    @property
    def end_ids(self) -> list[int]:
        """Ends of a text: the tokenizer's own, and the one our decoded samples spell, where it knows it."""
        known = self.tokenizer.get_added_vocab()
        own = [] if self.tokenizer.eos_token_id is None else [int(self.tokenizer.eos_token_id)]
        return [*own, *([int(known[EOS_TEXT])] if EOS_TEXT in known else [])]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids without special tokens added; a text that spells the end of text (a decoded sample) gives that token."""
        if not texts:
            return []
        out: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [ids[: self.max_tokens] for ids in out]

    def score(self, texts: Sequence[str]) -> list[JudgedText]:
        """Of each text. A text of fewer than two tokens has no score: (0, 0)."""
        rows = self.encode(texts)
        scores = [JudgedText(0.0, 0)] * len(rows)
        # Neighbours of similar length waste least padding.
        order = sorted((i for i, ids in enumerate(rows) if len(ids) > 1), key=lambda i: len(rows[i]))
        for start in range(0, len(order), self.batch_sequences):
            part = order[start : start + self.batch_sequences]
            for index, score in zip(part, self._score_batch([rows[i] for i in part]), strict=True):
                scores[index] = score
        return scores

    @torch.no_grad()
    def _score_batch(self, rows: Sequence[Sequence[int]]) -> list[JudgedText]:
        ids_BL, real_BL = padded(rows, self.model.device)
        logits_BLV = self.model(input_ids=ids_BL, attention_mask=real_BL.long(), use_cache=False).logits
        keep_BL = judged_positions(ids_BL, real_BL, self.end_ids, self.counted)
        found = []
        for logits_LV, ids_L, keep_L in zip(logits_BLV, ids_BL, keep_BL, strict=True):
            nll_L = torch.nn.functional.cross_entropy(logits_LV[:-1].float(), ids_L[1:], reduction="none")
            found.append(JudgedText(float(nll_L[keep_L].double().sum()), int(keep_L.sum())))
        return found

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> Tensor:
        """float32 (n, D) on the CPU: last hidden state at each text's last token, as MAUVE takes it."""
        rows = [ids or [(*self.end_ids, 0)[0]] for ids in self.encode(texts)]
        parts = []
        for start in range(0, len(rows), self.batch_sequences):
            ids_BL, real_BL = padded(rows[start : start + self.batch_sequences], self.model.device)
            out = self.model(
                input_ids=ids_BL, attention_mask=real_BL.long(), use_cache=False, output_hidden_states=True
            )
            last_B = real_BL.sum(1) - 1
            parts.append(out.hidden_states[-1][torch.arange(len(last_B)), last_B].float().cpu())
        return torch.cat(parts)


def padded(rows: Sequence[Sequence[int]], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """(ids_BL, real_BL): padded on the right, where a causal model's earlier positions cannot see it."""
    length = max(map(len, rows))
    ids_BL = torch.zeros(len(rows), length, dtype=torch.int64)
    real_BL = torch.zeros(len(rows), length, dtype=torch.bool)
    for index, ids in enumerate(rows):
        ids_BL[index, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
        real_BL[index, : len(ids)] = True
    return ids_BL.to(device), real_BL.to(device)


def generative_perplexity(scores: Sequence[JudgedText]) -> float:
    """exp(sum of nats / tokens that count), over all texts together; NaN when none counts."""
    num_tokens = sum(score.num_tokens for score in scores)
    return math.exp(math.fsum(score.nll for score in scores) / num_tokens) if num_tokens else math.nan


def load_judge(
    name: str,
    *,
    key: str = "evaluator.judge",
    device: str = "cpu",
    max_tokens: int = 1024,
    batch_sequences: int = 4,
    counted: str = "first_document",
) -> CausalJudge:
    """A judge from a folder, a GGUF file, or a name on the hub, in float32. counted: see `judged_positions`.

    Raises UserError naming `key` when it cannot be loaded.
    """
    path = Path(name).expanduser()
    if path.suffix == ".gguf" and not path.is_file():
        raise UserError(f"{key}={name}: no such file; give a GGUF file, a folder, a hub name, or null for no judge")
    source, gguf = (str(path.parent), {"gguf_file": path.name}) if path.suffix == ".gguf" else (name, {})
    try:
        model, tokenizer = _load(source, gguf)
    except ImportError as error:
        reason = f"{_first_line(error)}; install the extra: pip install 'sm-diffusion[eval]'"
        raise UserError(f"{key}={name}: {reason}") from None
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        where = "this file or folder" if path.exists() else "a folder or the Hugging Face hub"
        raise UserError(
            f"{key}={name}: no causal language model could be loaded from {where} ({_first_line(error)}); "
            "give a local folder or GGUF file, or null for none"
        ) from None
    limit = model.config.get_text_config().max_position_embeddings
    return CausalJudge(
        name=name,
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        max_tokens=min(max_tokens, limit),
        batch_sequences=batch_sequences,
        counted=counted,
    )


def _load(source: str, gguf: dict[str, str]) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if gguf:
        import gguf as _  # noqa: F401  transformers reports its absence only after minutes
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **gguf)
    if len(tokenizer) < 2:
        raise ValueError("its tokenizer is empty")
    model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=False, dtype=torch.float32, **gguf)
    return model, tokenizer


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
