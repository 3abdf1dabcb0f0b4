"""A trained model as a Python object: load it, generate with it.

    import sm_diffusion

    model = sm_diffusion.load("runs/quickstart/sm_updates/checkpoints/last.ckpt")
    print(model.generate(num_samples=2, steps=64, seed=1))
    print(model.generate(["the cat [MASK][MASK][MASK] on the mat"]))
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sm_diffusion.app.build import build_predictor, build_schedule
from sm_diffusion.app.build_sampler import build_sampler, with_overrides
from sm_diffusion.app.build_tokenizer import open_tokenizer
from sm_diffusion.config import schema
from sm_diffusion.config.schema_sampler import SamplerConfig, TimedSamplerConfig
from sm_diffusion.config.store import compose_config, restore_train_config
from sm_diffusion.data.chat.face import ChatFace
from sm_diffusion.data.tokenizers.base import MASK_TEXT, TextTokenizer, encode_piece
from sm_diffusion.denoisers.checkpoints.weights import Weights, load_into, read_weights
from sm_diffusion.diffusion.predictor import Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.schedule import NoiseSchedule
from sm_diffusion.evaluation.generation.samples import row_seed
from sm_diffusion.sampling import Canvas, RowNoise, Sampler, SamplerOutput, from_rows
from sm_diffusion.sampling.trajectory import Frame
from sm_diffusion.types import UserError

Prompt = str | Sequence[int]


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A network with its tokenizer.

    length:          tokens of the longest text, prompt included: what the network was trained on.
    chat:            how to talk to it; None: it was trained on plain text.
    batch_sequences: rows of one forward pass; changes no text.
    """

    predictor: Predictor
    tokenizer: TextTokenizer
    length: int
    run: schema.TrainConfig
    weights: Weights
    chat: ChatFace | None = None
    batch_sequences: int = 16

    @property
    def device(self) -> torch.device:
        return next(self.predictor.parameters()).device

    def generate(
        self,
        prompts: Sequence[Prompt] | None = None,
        *,
        num_samples: int = 1,
        length: int | None = None,
        steps: int | None = None,
        sampler: str | SamplerConfig = "ancestral",
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
        settings = with_overrides(settings, steps=steps, temperature=temperature, top_p=top_p)
        rows = self.rows(prompts, num_samples=num_samples, length=length)
        batches = self.run_sampler(rows, self.sampler(settings), seed=seed)
        return [self.tokenizer.decode(ids) for canvas, out in batches for ids in canvas.texts(out.ids_BL)]

    @property
    def told_schedule(self) -> NoiseSchedule | None:
        """The schedule from which the network is told its noise level; None: it is not told."""
        model = self.run.model
        told = isinstance(model, schema.DiTConfig) and model.time_conditioning
        return build_schedule(self.run.schedule) if told else None

    def sampler(self, settings: SamplerConfig) -> Sampler:
        """The sampling loop over this network, with the noise schedule it was trained with."""
        return build_sampler(
            settings,
            self.predictor,
            schedule=build_schedule(self.run.schedule),
            time_conditioning=self.told_schedule is not None,
        )

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


def named_sampler(name: str, overrides: Sequence[str] = ()) -> SamplerConfig:
    """The settings of conf/sampler/<name>.yaml; UserError lists the names. overrides: such as sampler.eta=0.1."""
    settings: SamplerConfig = compose_config("sample", [f"sampler={name}", *overrides]).sampler
    return settings


def answer_sampler(
    name: str,
    *,
    new_tokens: int,
    nfe: float = 1.0,
    steps: int | None = None,
    temperature: float | None = None,
    top_p: float | None = None,
) -> SamplerConfig:
    """The sampler of that name for an answer of `new_tokens`: `steps`, else nfe * new_tokens, at least one."""
    settings = named_sampler(name)
    if steps is None and (isinstance(settings, TimedSamplerConfig) or nfe != 1):
        steps = max(1, round(nfe * new_tokens))
    return with_overrides(settings, steps=steps, temperature=temperature, top_p=top_p)


def load(
    path: str | Path, weights: str = "ema", device: str = "auto", overrides: Sequence[str] = ()
) -> LoadedModel:
    """A trained model: its network, its tokenizer and how to talk to it.

    path:      a checkpoint; an adapter folder; a model folder (exported by `smd convert`, or published Dream, LLaDA,
               Qwen2, Qwen3, Llama); or the hub id of one, `owner/name` or `owner/name@revision`.
    weights:   "ema" or "raw", of a checkpoint; "ema" means raw where a run kept no average by default (adapters).
    device:    "auto" (CUDA where there is one), "cpu", "cuda", ...
    overrides: of eval.py. A published checkpoint does not say its sizes and tokenizer:
               ["model=dit_169m", "data=text_files", "data.paths=[x]", "data.tokenizer.kind=hub", ...];
               a folder takes model=NAME with model.dtype and model.path (where an adapter's base has moved).
    Raises UserError for what is missing, broken or foreign.
    """
    config: schema.EvalConfig = compose_config("eval", ["checkpoint=given", *overrides])
    config.checkpoint = str(path)
    if Path(path).is_file():
        model = _load_checkpoint(config, weights)
    else:
        from sm_diffusion.app.load_folder import load_folder

        model = load_folder(config)
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        model.predictor.to(name)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={device}: cannot be used ({str(error).splitlines()[0]}); choose cpu") from None
    model.predictor.eval()
    return model


def _load_checkpoint(config: schema.EvalConfig, weights: str) -> LoadedModel:
    found = read_weights(config.checkpoint, weights="raw" if weights == "ema" else weights)
    run = run_config(config, found)
    if weights == "ema" and (run.peft.kind == "none" or run.callbacks.ema.enabled):
        found = read_weights(config.checkpoint, weights="ema")
    # With another corpus than its own, the checkpoint's tokenizer is another one, too.
    files = found.provenance.get("tokenizer") if found.provenance is not None and config.data is None else None
    spoken = open_tokenizer(run.data, files)
    predictor = build_predictor(run, vocab_size=spoken.tokenizer.vocab_size, mask_id=spoken.tokenizer.mask_id)
    load_weights(predictor, found)
    return LoadedModel(
        predictor=predictor,
        tokenizer=spoken.tokenizer,
        length=run.data.length,
        run=run,
        weights=found,
        chat=spoken.chat,
    )


def run_config(config: schema.EvalConfig, weights: Weights) -> schema.TrainConfig:
    """The training configuration of the checkpoint, with what the evaluation replaces."""
    if weights.provenance is not None:
        run = restore_train_config(weights.provenance)
    else:
        if config.model is None or config.data is None:
            raise UserError(
                f"checkpoint={weights.path}: a published checkpoint does not say its model and corpus; "
                "give model=... and data=..."
            )
        variant = schema.SoftMaskedVariantConfig() if weights.soft_mask else schema.MDLMVariantConfig()
        run = schema.TrainConfig(variant=variant, soft_mask=config.soft_mask)
    run.model = config.model or run.model
    run.data = config.data or run.data
    return run


def load_weights(predictor: Predictor, weights: Weights) -> None:
    """Copy a checkpoint's network and omegas into a predictor built for them."""
    load_into(predictor.denoiser, weights.denoiser, source=weights.path, what="model and corpus")
    if isinstance(predictor, SoftMaskPredictor):
        own = predictor.soft_mask.state_dict()
        loaded = {name: value for name, value in weights.soft_mask.items() if name in own}
        load_into(predictor.soft_mask, loaded, source=weights.path, what="soft mask")
