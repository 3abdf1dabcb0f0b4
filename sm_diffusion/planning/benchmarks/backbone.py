"""`smd bench backbone`: a 7B network with random weights: fine-tuning step, decoding with caches, cost of soft masks.

Nothing is downloaded: sizes come from conf/model, weights are drawn on the device. Speed and memory do not depend on
their values, but confidences do: the threshold of parallel decoding is therefore the confidence that one in eight masks
of the first prediction reaches, and the tokens drawn a pass are reported beside the tokens a second.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sm_diffusion.denoisers.pretrained.hf import HFDenoiser
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.soft_mask import SoftMask
from sm_diffusion.evaluation.results import environment
from sm_diffusion.files import write_json
from sm_diffusion.planning.benchmarks.measure import interleaved_ms, peak_mb
from sm_diffusion.sampling import (
    Blockwise,
    CacheScope,
    ConfidenceOrder,
    DualCache,
    PrefixCache,
    RowNoise,
    Sampler,
    SamplerOutput,
    Threshold,
    Timetable,
    TokenSampling,
    UnmaskPolicy,
    from_prompts,
)
from sm_diffusion.sampling.orders.confidence import build_measure
from sm_diffusion.types import Draws

WANTED_OVERHEAD = 1.02  # a soft-masked decoding over the plain one, same order and cache
WANTED_PEAK_GB = 40.0
PASSING = 1 / 8  # share of the masks above the threshold in the first prediction
STD = 0.02


def add_arguments(parser: argparse.ArgumentParser) -> None:
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--model", default="dream_7b" if on_gpu else "qwen2_tiny", help="of conf/model, %(default)s")
    parser.add_argument("--length", type=int, default=2048 if on_gpu else 96, help="tokens of the trained conversation")
    parser.add_argument("--prompt", type=int, default=256 if on_gpu else 24, help="tokens of a prompt to decode from")
    parser.add_argument("--new", type=int, default=256 if on_gpu else 32, help="tokens to decode")
    parser.add_argument("--block", type=int, default=32 if on_gpu else 8, help="tokens of a block")
    parser.add_argument("--batch", type=int, default=1, help="prompts decoded at once")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds; the median is reported")
    parser.add_argument("--device", default="cuda" if on_gpu else "cpu")
    parser.add_argument("--only", choices=("train", "decode"), help="default: both")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")


def random_denoiser(name: str, *, device: str) -> HFDenoiser:
    """The network of conf/model/NAME with normal weights, each drawn on the device in its dtype: one copy in memory."""
    from sm_diffusion.app.compose import compose_and_validate
    from sm_diffusion.denoisers.pretrained.loading import LAYOUTS, build_empty
    from sm_diffusion.denoisers.pretrained.settings import DTYPES, HFSettings
    from sm_diffusion.types import UserError

    model = compose_and_validate("train", [f"model={name}"]).model
    if not isinstance(model, HFSettings):
        raise UserError(f"--model {name}: no transformers backbone; choose dream_7b, llada_8b or qwen2_tiny")
    lm = build_empty(LAYOUTS[model.shape.architecture], model.shape.config(model.shape.vocab_size or 258))
    generator = torch.Generator(device).manual_seed(0)
    for parent_name, parent in lm.named_modules():
        for own, meta in list(parent.named_parameters(recurse=False)):
            values = torch.ones(meta.shape, dtype=DTYPES[model.dtype], device=device)
            if "norm" not in parent_name:
                values.normal_(0.0, STD, generator=generator)
            setattr(parent, own, nn.Parameter(values))
    if lm.config.tie_word_embeddings:
        lm.tie_weights()
    lm.model.rotary_emb.to(device)
    shift = name != "llada_8b" if model.shift_logits is None else model.shift_logits
    return HFDenoiser(lm, shift_logits=shift, checkpoint_blocks=model.activation_checkpointing, source=f"random {name}")


def predictors(denoiser: HFDenoiser) -> dict[str, Predictor]:
    """mdlm and sm over the same network; the published omegas of the coding experiments."""
    mask_id, device = denoiser.lm.config.vocab_size - 1, denoiser.lm.lm_head.weight.device
    soft_mask = SoftMask(top_k=1, omega_s=0.25, omega_a=5.0, omega_b=-1.0).to(device)
    return {
        "mdlm": HardMaskPredictor(denoiser, mask_id=mask_id),
        "sm": SoftMaskPredictor(denoiser, soft_mask, mask_id=mask_id, mixing=mixing.linear),
    }


# ------------------------------------------------------------------------------------------------------------ decoding


class Decoding:
    """The same canvas decoded greedily under every order and cache."""

    def __init__(self, args: argparse.Namespace, predictor: Predictor) -> None:
        generator = torch.Generator().manual_seed(1)
        prompts = torch.randint(0, predictor.mask_id, (args.batch, args.prompt), generator=generator).tolist()
        self.canvas = from_prompts(prompts, new_tokens=args.new, mask_id=predictor.mask_id, device=args.device)
        self.noise = RowNoise(list(range(args.batch)), self.canvas.positions_BL)
        self.args = args

    def orders(self, threshold: float) -> dict[str, tuple[UnmaskPolicy, CacheScope | None]]:
        """As many steps as tokens by entropy, as Dream decodes; then by blocks, with caches, and by threshold."""
        block, new = self.args.block, self.args.new

        def entropy(steps: int) -> ConfidenceOrder:
            return ConfidenceOrder(measure=build_measure("entropy"), pace=Timetable(num_steps=steps))

        def parallel() -> UnmaskPolicy:
            order = ConfidenceOrder(measure=build_measure("probability"), pace=Threshold(value=threshold))
            return Blockwise(order, block_length=block)

        return {
            "whole": (entropy(new), None),
            "blocks": (Blockwise(entropy(block), block_length=block), None),
            "blocks_prefix": (Blockwise(entropy(block), block_length=block), PrefixCache()),
            "blocks_dual": (Blockwise(entropy(block), block_length=block), DualCache()),
            "threshold": (parallel(), None),
            "threshold_dual": (parallel(), DualCache()),
        }

    def run(self, predictor: Predictor, policy: UnmaskPolicy, cache: CacheScope | None) -> SamplerOutput:
        sampler = Sampler(predictor, policy, sampling=TokenSampling(temperature=0.0), cache=cache)
        with torch.autocast(torch.device(self.args.device).type, torch.bfloat16, enabled=self.args.device != "cpu"):
            return sampler.sample(self.canvas, self.noise)

    @torch.no_grad()
    def threshold(self, predictor: Predictor) -> float:
        """The confidence that PASSING of the masks reach in the first prediction."""
        masked_BL = self.canvas.ids_BL == predictor.mask_id

        def best(hidden_BLD: Tensor, head: Any) -> Tensor:
            logits_NV = nn.functional.linear(hidden_BLD[masked_BL], head.weight_VD, head.bias_V).float()
            return logits_NV.softmax(-1).amax(-1)

        with torch.autocast(torch.device(self.args.device).type, torch.bfloat16, enabled=self.args.device != "cpu"):
            confidence_N: Tensor = predictor(self.canvas.ids_BL, None, best)
        return float(confidence_N.quantile(1 - PASSING))


def measure_decoding(args: argparse.Namespace, pair: Mapping[str, Predictor]) -> dict[str, Any]:
    """Tokens a second, passes, peak memory; sm_over_mdlm is the time a pass costs more, since passes may differ."""
    pair["mdlm"].denoiser.eval()
    decoding = Decoding(args, pair["mdlm"])
    threshold, tokens = decoding.threshold(pair["mdlm"]), args.batch * args.new
    found: dict[str, Any] = {"threshold_value": threshold}
    for order, (policy, cache) in decoding.orders(threshold).items():
        runs = {kind: functools.partial(decoding.run, p, policy, cache) for kind, p in pair.items()}
        passes = {kind: run().forward_passes for kind, run in runs.items()}
        ms = interleaved_ms(runs, repeats=args.repeats, warmup=0)
        found[order] = {
            **{f"{kind}_tokens_per_second": tokens / ms[kind] * 1e3 for kind in runs},
            **{f"{kind}_passes": passes[kind] for kind in runs},
            **{f"{kind}_ms_a_pass": ms[kind] / passes[kind] for kind in runs},
            **{f"{kind}_tokens_a_pass": args.new / passes[kind] for kind in runs},
            "sm_peak_mb": peak_mb(runs["sm"]),
            "sm_over_mdlm": (ms["sm"] / passes["sm"]) / (ms["mdlm"] / passes["mdlm"]),
        }
    return found


# ---------------------------------------------------------------------------------------------------------- fine-tuning


def measure_training(args: argparse.Namespace, denoiser: HFDenoiser) -> dict[str, Any]:
    """A DoRA step as published: one conversation, recomputed layers, AdamW over adapters and omegas."""
    from sm_diffusion.data.chat.collate import ChatSample, collate
    from sm_diffusion.denoisers.adapters import peft
    from sm_diffusion.diffusion.sft import FirstRowTime, SFTObjective

    adapter = peft.attach(denoiser, peft.DORA, seed=0)
    pair = predictors(denoiser.train())
    objective = SFTObjective(times=FirstRowTime(t_min=0.2, t_max=0.8), mask_id=pair["sm"].mask_id)
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, pair["sm"].mask_id, (args.length,), generator=generator).tolist()
    batch = collate([ChatSample(ids, args.length // 4)], torch.arange(1), pad_id=0, extra=49)
    uniform_BL = torch.rand(batch.ids_BL.shape, generator=generator)
    values: list[Any] = [value.to(args.device) if isinstance(value, Tensor) else value for value in batch]
    moved = type(batch)(*values)
    draws = Draws(torch.tensor([0.5], device=args.device), uniform_BL.to(args.device), moved.rows_B, 1)

    def stepper(kind: str) -> Callable[[], Tensor]:
        trained = [parameter for parameter in pair[kind].parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.0)

        def step() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled=args.device != "cpu"):
                loss = objective(pair[kind], moved, draws, feedback=kind == "sm").loss
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            return loss.detach()

        return step

    steps = {kind: stepper(kind) for kind in pair}
    ms = interleaved_ms(steps, repeats=args.repeats)
    held = sum(parameter.nbytes for parameter in pair["sm"].parameters())
    extra = peak_mb(steps["sm"]) * 1e6
    return {
        **{f"{kind}_ms": value for kind, value in ms.items()},
        "positions": batch.ids_BL.shape[1],
        "trained": sum(parameter.numel() for parameter in adapter.parameters().values()),
        "sm_over_mdlm": ms["sm"] / ms["mdlm"],
        "weights_gb": held / 1e9,
        # All that is held, the optimiser's moments included; on the CPU without them.
        "sm_peak_gb": (held + extra if args.device == "cpu" else torch.cuda.max_memory_allocated()) / 1e9,
    }


def measure(args: argparse.Namespace) -> dict[str, Any]:
    denoiser = random_denoiser(args.model, device=args.device)
    found: dict[str, Any] = {}
    if args.only != "train":
        found["decode"] = measure_decoding(args, predictors(denoiser))
    if args.only != "decode":
        found["train"] = measure_training(args, denoiser)
    settings = {key: value for key, value in vars(args).items() if isinstance(value, int | str)}
    about = environment()
    return found | {"settings": settings, "machine": about["machine"], "versions": about["versions"]}


def run_cli(args: argparse.Namespace) -> int:
    results = measure(args)
    for line in lines_of(results):
        print(line)
    if args.json is not None:
        write_json(args.json, results)
        print(f"written to {args.json}")
    return 0


def lines_of(results: Mapping[str, Any]) -> list[str]:
    """The report a terminal shows."""
    lines = []
    if "decode" in results:
        lines.append(f"{'decoding':<16}{'mdlm tok/s':>12}{'sm tok/s':>12}{'tok/pass':>10}{'sm/mdlm a pass':>16}")
        for order, row in results["decode"].items():
            if isinstance(row, dict):
                speeds = f"{row['mdlm_tokens_per_second']:>12.1f}{row['sm_tokens_per_second']:>12.1f}"
                lines.append(f"{order:<16}{speeds}{row['sm_tokens_a_pass']:>10.2f}{row['sm_over_mdlm']:>16.3f}")
        lines.append(f"wanted: sm/mdlm at most {WANTED_OVERHEAD}")
    if "train" in results:
        row = results["train"]
        times = f"mdlm {row['mdlm_ms']:.1f} ms, sm {row['sm_ms']:.1f} ms"
        lines.append(f"fine-tuning step, {row['positions']} positions: {times}")
        sizes = f"peak {row['sm_peak_gb']:.4g} GB, of which weights {row['weights_gb']:.4g} GB"
        lines.append(f"{sizes} (wanted under {WANTED_PEAK_GB:.0f} GB)")
    return lines
