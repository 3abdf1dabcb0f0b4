"""lm-evaluation-harness on diffusion models: the model `sm_diffusion` (lm-eval 0.4.13).

`Harness` answers requests and knows nothing of the package; `register` makes its class known to it.

    smd lm-eval -- run --model sm_diffusion --model_args pretrained=last.ckpt --tasks arc_easy --output_path out
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import sm_diffusion
from sm_diffusion.evaluation.harness.decode import Job, generate, greedy_matches
from sm_diffusion.evaluation.harness.opened import OpenedModel, OpenModel
from sm_diffusion.evaluation.harness.settings import HarnessSettings, Wish, wish_of
from sm_diffusion.evaluation.harness.text import Texts
from sm_diffusion.evaluation.likelihood import (
    ContinuousTime,
    Estimate,
    Estimator,
    MaskCount,
    MonteCarloLikelihood,
    Passage,
    noise_level,
)
from sm_diffusion.types import UserError

MODEL_NAME = "sm_diffusion"
_CHUNK = 256  # requests decoded greedily before they are scored: what an interruption can cost
Keep = Callable[[int, Any], None]  # called with the index of a request and its answer as soon as there is one


class Harness:
    """Answers to requests, in their order. An answer depends on its request and the settings alone: neither on the
    batch size nor on which requests came before, so an interrupted run goes on to the same numbers."""

    def __init__(self, model: OpenedModel, settings: HarnessSettings) -> None:
        if settings.max_length is not None and not 2 <= settings.max_length <= model.length:
            raise UserError(f"max_length={settings.max_length}: must lie between 2 and the model's {model.length}")
        self.model = model = model.with_batch(settings.batch_size)
        self.settings = settings
        self.length = settings.max_length or model.length
        self.texts = Texts(model.tokenizer, model.chat, self.length)
        self.likelihood = MonteCarloLikelihood(
            model.predictor,
            estimator_of(settings),
            max_length=self.length,
            seed=settings.seed,
            batch_sequences=settings.batch_size,
            feedback=settings.feedback,
            sigma=None if model.told_schedule is None else noise_level(model.told_schedule),
        )

    def loglikelihood(self, pairs: Sequence[tuple[str, str]], keep: Keep | None = None) -> list[tuple[float, bool]]:
        """(log probability in nats, whether greedy decoding gives the continuation) of (context, continuation).

        The first is the bound of `MonteCarloLikelihood`. The second decodes one token a step, the surest first; with
        `is_greedy=false` it is not computed and False.
        """
        passages = [self.texts.pair(*pair, index) for index, pair in enumerate(pairs)]
        found: list[tuple[float, bool]] = []
        for start in range(0, len(passages), _CHUNK):
            found += self._score(passages[start : start + _CHUNK], start, keep)
        return found

    def _score(self, passages: list[Passage], start: int, keep: Keep | None) -> list[tuple[float, bool]]:
        greedy = dict.fromkeys(range(len(passages)), False)
        if self.settings.is_greedy:
            greedy = greedy_matches(self.model, passages, self.settings.batch_size)

        def done(index: int, estimate: Estimate) -> None:
            if keep is not None:
                keep(start + index, (estimate.log_prob, greedy[index]))

        found = self.likelihood(passages, done)
        return [(estimate.log_prob, greedy[index]) for index, estimate in enumerate(found)]

    def loglikelihood_rolling(self, texts: Sequence[str], keep: Keep | None = None) -> list[float]:
        """Log probability of whole texts, nats. A text longer than the model is cut into windows, each given the last
        token of the one before."""
        windows = [self.texts.windows(text) for text in texts]
        totals = [0.0] * len(texts)
        left = [len(parts) for parts in windows]
        owner = [index for index, parts in enumerate(windows) for _ in parts]

        def done(position: int, estimate: Estimate) -> None:
            index = owner[position]
            totals[index] += estimate.log_prob
            left[index] -= 1
            if left[index] == 0 and keep is not None:
                keep(index, totals[index])

        self.likelihood([part for parts in windows for part in parts], done)
        return totals

    def generate_until(self, requests: Sequence[tuple[str, Mapping[str, Any]]], keep: Keep | None = None) -> list[str]:
        """Answers to (prompt, wishes of the task: until, max_gen_toks, temperature, top_p, do_sample)."""
        jobs: list[Job] = []
        seen: dict[tuple[str, Wish], int] = {}
        for index, (context, wishes) in enumerate(requests):
            wish = wish_of(wishes, self.settings, self.length)
            repeat = seen[context, wish] = seen.get((context, wish), -1) + 1
            prompt = self.texts.prompt(context, wish.new_tokens, index)
            jobs.append(Job(index, tuple(prompt), wish, repeat))
        return generate(self.model, jobs, self.settings, self.texts.answer, keep)

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> str:
        return self.texts.render(messages, add_generation_prompt=add_generation_prompt)

    def info(self) -> dict[str, Any]:
        """Everything that decides the numbers, for `results.json`."""
        return {
            "sm_diffusion": {
                "version": sm_diffusion.__version__,
                "checkpoint": self.model.source,
                "checkpoint_sha256": self.model.sha256,
                "checkpoint_step": self.model.step,
                "weights": self.model.weights,
                "variant": self.model.variant,
                "tokenizer_fingerprint": self.model.tokenizer.fingerprint(),
                "length": self.length,
                **self.settings.record(),
                "truncated_prompts": self.texts.num_truncated,
            }
        }


def estimator_of(settings: HarnessSettings) -> Estimator:
    match settings.mc_estimator:
        case "mask_count":
            return MaskCount(num_samples=settings.mc_samples)
        case "continuous_time":
            return ContinuousTime(num_samples=settings.mc_samples)
        case name:
            raise UserError(f"mc_estimator={name}: choose mask_count or continuous_time")


@contextmanager
def _kept(kind: str, requests: list[Any], add: Callable[[str, Any, Any], None]) -> Iterator[Keep]:
    """Answers go to lm_eval's cache one by one, so an interruption loses none; a bar shows how far it is."""
    from tqdm import tqdm  # of lm_eval

    with tqdm(total=len(requests), desc=kind) as bar:

        def keep(index: int, answer: Any) -> None:
            add(kind, requests[index].args, answer)
            bar.update()

        yield keep


def register(open_model: OpenModel) -> type:
    """Make the model name `sm_diffusion` known to lm_eval; UserError where the package is missing.

    open_model: opens what `pretrained` names, such as `sm_diffusion.load`.
    """
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.registry import model_registry
    except ImportError:
        raise UserError("lm-evaluation-harness is not installed: pip install 'sm-diffusion[eval]'") from None
    if MODEL_NAME in model_registry:
        found: type = model_registry.get(MODEL_NAME)
        return found

    class SmDiffusionLM(LM):  # type: ignore[misc]
        """model_args: `pretrained`, `weights`, and the fields of `HarnessSettings`."""

        def __init__(self, pretrained: str = "", *, device: str = "auto", weights: str = "ema", **options: Any) -> None:
            super().__init__()
            if not pretrained:
                raise UserError("model_args: pretrained is missing; give --model_args pretrained=CHECKPOINT")
            settings = HarnessSettings.parse(options)
            self.harness = Harness(open_model(pretrained, weights, str(device)), settings)

        def _keep(self, kind: str, requests: list[Any]) -> AbstractContextManager[Keep]:
            return _kept(kind, requests, lambda kind, args, answer: self.cache_hook.add_partial(kind, args, answer))

        def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
            with self._keep("loglikelihood", requests) as keep:
                return self.harness.loglikelihood([r.args for r in requests], keep)

        def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
            with self._keep("loglikelihood_rolling", requests) as keep:
                return self.harness.loglikelihood_rolling([r.args[0] for r in requests], keep)

        def generate_until(self, requests: list[Any]) -> list[str]:
            with self._keep("generate_until", requests) as keep:
                return self.harness.generate_until([r.args for r in requests], keep)

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            return self.harness.apply_chat_template(chat_history, add_generation_prompt)

        @property
        def tokenizer_name(self) -> str:
            return self.harness.texts.name

        def chat_template(self, chat_template: bool | str = False) -> str | None:
            return self.harness.texts.template(chat_template)

        def get_model_info(self) -> dict[str, Any]:
            return self.harness.info()

    model_registry.register(MODEL_NAME, target=SmDiffusionLM)
    return SmDiffusionLM
