"""A trained model as a Python object: everything that is needed to use it, and generating with it.

    import sm_diffusion

    model = sm_diffusion.load("runs/quickstart/sm_updates/checkpoints/last.ckpt")
    print(model.generate(num_samples=2, steps=64, seed=1))
    print(model.generate(["the cat [MASK][MASK][MASK] on the mat"]))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from sm_diffusion.config.compose import compose_config
from sm_diffusion.config.root import TrainConfig
from sm_diffusion.data.chat.format import ChatFormat, stop_ids_of
from sm_diffusion.data.tokenizers.base import MASK_TEXT, TextTokenizer, encode_piece
from sm_diffusion.denoisers.adapters.transparency import FILE_NAME as TRANSPARENCY_FILE
from sm_diffusion.denoisers.pretrained.hf import HFDenoiser
from sm_diffusion.denoisers.settings import is_told_time
from sm_diffusion.diffusion.predictor import Predictor
from sm_diffusion.diffusion.schedule import NoiseSchedule
from sm_diffusion.evaluation.generation.samples import row_seed
from sm_diffusion.files import digest, sha256_of
from sm_diffusion.sampling import Canvas, RowNoise, Sampler, SamplerOutput, from_rows
from sm_diffusion.sampling.settings import SamplerSettings
from sm_diffusion.sampling.trajectory import Frame
from sm_diffusion.types import UserError

Prompt = str | Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network with its tokenizer.

    predictor:       the network and, where it is soft-masked, its omegas.
    mixing:          how its soft mask blends embeddings, linear or spherical; None: it has no soft mask.
    tokenizer:       text to ids and back.
    chat:            how a conversation becomes ids; None: it was trained on plain text.
    length:          tokens of the longest text, prompt included: what the network was trained on.
    run:             the settings it was trained with, as far as they are known.
    source:          where it was opened from.
    weights:         "ema", "raw" or "as published".
    step:            of its training; None: not known.
    files:           checkpoint, or folders, that hold its weights.
    batch_sequences: rows of one forward pass; changes no text.
    """

    predictor: Predictor
    mixing: str | None
    tokenizer: TextTokenizer
    chat: ChatFormat | None
    length: int
    run: TrainConfig
    source: str
    weights: str
    step: int | None
    files: tuple[Path, ...]
    batch_sequences: int = 16

    @property
    def device(self) -> torch.device:
        return next(self.predictor.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the network's weights in memory; adapters are float32 beside it."""
        return next(self.predictor.denoiser.parameters()).dtype

    @property
    def stop_ids(self) -> frozenset[int]:
        """An answer ends before the first of them."""
        return stop_ids_of(self.tokenizer, self.chat)

    @property
    def pad_id(self) -> int:
        """Fills rows up; nothing attends to it."""
        return self.tokenizer.eos_id if self.chat is None else self.chat.pad_id

    @property
    def variant(self) -> str:
        """mdlm or soft_masked."""
        return self.run.variant.name

    @property
    def schedule(self) -> NoiseSchedule:
        """The noise schedule it was trained with."""
        schedule: NoiseSchedule = self.run.schedule
        return schedule

    @property
    def time_conditioning(self) -> bool:
        """Whether the network is told its noise level."""
        return is_told_time(self.run.model)

    @property
    def told_schedule(self) -> NoiseSchedule | None:
        """The schedule from which the network is told its noise level; None: it is not told."""
        return self.schedule if self.time_conditioning else None

    @cached_property
    def sha256(self) -> str:
        """Of the weights and omegas: of the checkpoint file, or of what the folders hold, by name and content."""
        if self.files[0].is_file():
            return sha256_of(self.files[0])
        held = [sorted([*folder.glob("*.safetensors"), *folder.glob(TRANSPARENCY_FILE)]) for folder in self.files]
        return digest(*(f"|{path.name}|{sha256_of(path)}" for paths in held for path in paths))

    def with_batch(self, batch_sequences: int) -> Model:
        """The same model with so many rows a forward pass."""
        return replace(self, batch_sequences=batch_sequences)

    @property
    def positions(self) -> int:
        """Tokens that fit at all: the positions of a transformers backbone, else `length`. Benchmarks go up to here, as
        published (Dream answers HumanEval in texts longer than its samples of fine-tuning)."""
        denoiser = self.predictor.denoiser
        return int(denoiser.lm.config.max_position_embeddings) if isinstance(denoiser, HFDenoiser) else self.length

    def generate(
        self,
        prompts: Sequence[Prompt] | None = None,
        *,
        num_samples: int = 1,
        length: int | None = None,
        steps: int | None = None,
        sampler: str | SamplerSettings = "ancestral",
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int = 1,
    ) -> list[str]:
        """Texts, `num_samples` for each prompt, prompt by prompt; each depends on nothing but its own seed and prompt.

        prompts: texts to go on from, or, where they hold `[MASK]`, to fill in (a token for each). None: from nothing.
        length:  tokens of a text, prompt included; None: the model's. A text with `[MASK]` keeps its own.
        steps, temperature, top_p: None: as conf/sampler/<sampler>.yaml has them.
        sampler: a name of conf/sampler, or settings.
        Raises UserError for a prompt that does not fit, an unknown sampler and settings out of range.
        """
        settings = named_sampler(sampler) if isinstance(sampler, str) else sampler
        settings = settings.with_overrides(steps=steps, temperature=temperature, top_p=top_p)
        rows = self.rows(prompts, num_samples=num_samples, length=length)
        batches = self.run_sampler(rows, self.sampler(settings), seed=seed)
        return [self.tokenizer.decode(ids) for canvas, out in batches for ids in canvas.texts(out.ids_BL)]

    def sampler(self, settings: SamplerSettings, predictor: Predictor | None = None) -> Sampler:
        """The sampling loop over this network, with the noise schedule it was trained with.

        predictor: the same network read in another way, such as without feedback; None: this model's.
        """
        return settings.build(
            self.predictor if predictor is None else predictor,
            schedule=self.schedule,
            time_conditioning=self.time_conditioning,
        )

    def answer_sampler(
        self,
        name: str,
        *,
        new_tokens: int,
        nfe: float = 1.0,
        steps: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
    ) -> Sampler:
        """The sampler of conf/sampler/<name>.yaml for an answer of `new_tokens`: `steps`, else nfe * new_tokens, at
        least one."""
        settings = named_sampler(name)
        if steps is None and (settings.num_steps is not None or nfe != 1):
            steps = max(1, round(nfe * new_tokens))
        return self.sampler(settings.with_overrides(steps=steps, temperature=temperature, top_p=top_p))

    def rows(
        self, prompts: Sequence[Prompt] | None = None, *, num_samples: int = 1, length: int | None = None
    ) -> list[list[int]]:
        """Ids with masks where tokens are wanted, `num_samples` copies of each prompt."""
        if num_samples < 1:
            raise UserError(f"num_samples={num_samples}: must be >= 1")
        length = self.length if length is None else length
        if not 1 <= length <= self.length:
            raise UserError(f"length={length}: must lie between 1 and the model's length {self.length}")
        found = [self._row(index, prompt, length) for index, prompt in enumerate([""] if prompts is None else prompts)]
        return [row for row in found for _ in range(num_samples)]

    def run_sampler(
        self,
        rows: Sequence[Sequence[int]],
        sampler: Sampler,
        *,
        seed: int = 1,
        seeds: Sequence[int] | None = None,
        record: bool = False,
        observe: Callable[[Frame], None] | None = None,
    ) -> Iterator[tuple[Canvas, SamplerOutput]]:
        """Fill the rows, a batch at a time; row i draws from `seeds[i]`, by default `row_seed(seed, i)`."""
        seeds = [row_seed(seed, index) for index in range(len(rows))] if seeds is None else seeds
        on_gpu = self.device.type == "cuda"
        for start in range(0, len(rows), self.batch_sequences):
            part = rows[start : start + self.batch_sequences]
            canvas = from_rows(
                part, mask_id=self.tokenizer.mask_id, max_length=self.length, device=self.device
            )
            noise = RowNoise(seeds[start : start + len(part)], canvas.positions_BL)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=on_gpu):  # as eval.py's precision=auto
                out = sampler.sample(canvas, noise, record=record, observe=observe)
            yield canvas, out

    def _row(self, index: int, prompt: Prompt, length: int) -> list[int]:
        mask_id = self.tokenizer.mask_id
        if not isinstance(prompt, str):
            ids = [int(token) for token in prompt]
            if mask_id in ids:
                raise UserError(
                    f"prompt {index} holds the mask token {mask_id}: remove it, "
                    f"or give a text with {MASK_TEXT} to fill in"
                )
            unknown = [token for token in ids if not 0 <= token < self.tokenizer.vocab_size]
            if unknown:
                raise UserError(
                    f"prompt {index} holds token {unknown[0]}: the vocabulary has {self.tokenizer.vocab_size} tokens"
                )
        elif MASK_TEXT in prompt:
            ids = infill_ids(self.tokenizer, prompt)
            if len(ids) > self.length:
                raise UserError(f"prompt {index} has {len(ids)} tokens, the model takes {self.length}: shorten it")
            return ids
        else:
            ids = encode_piece(self.tokenizer, prompt)
        if len(ids) >= length:
            raise UserError(
                f"prompt {index} has {len(ids)} tokens and leaves no room in a text of {length} (the model takes "
                f"{self.length}): shorten it or raise the length"
            )
        return [*ids, *[mask_id] * (length - len(ids))]


def infill_ids(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Ids of a text with the mask token for every `[MASK]` in it."""
    first, *others = text.split(MASK_TEXT)
    ids = encode_piece(tokenizer, first)
    for piece in others:
        ids += [tokenizer.mask_id, *encode_piece(tokenizer, piece)]
    return ids


def named_sampler(name: str, overrides: Sequence[str] = ()) -> SamplerSettings:
    """The settings of conf/sampler/<name>.yaml; UserError lists the names. overrides: such as sampler.eta=0.1."""
    settings: SamplerSettings = compose_config("sample", [f"sampler={name}", *overrides]).sampler
    return settings
