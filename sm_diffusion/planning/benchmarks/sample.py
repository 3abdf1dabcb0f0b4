"""`smd bench sample`: the plain sampler of the field against ours, MDLM and soft-masked, in one run on the CPU.

The plain sampler holds the whole (B, L, V) distribution in float64 and draws everywhere (`sampling.plain`). Ours runs
the same ancestral steps positions-first. Weights are random; times are milliseconds a step, from whole runs taken in
turn; peak memory comes from the allocator's events in runs that are not timed. The matrix products that MDLM and
soft-masking cannot do without (`bench_floor`) are timed in the same turns: they bound the ratio of the two.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sm_diffusion.denoisers.dit.model import DiT, DiTShape
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.parameterization import Subs
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.readouts import scratch
from sm_diffusion.diffusion.soft_mask import SoftMask
from sm_diffusion.evaluation.results import environment
from sm_diffusion.files import write_json
from sm_diffusion.planning.benchmarks.floor import Pass, arithmetic, counted, products_alone
from sm_diffusion.planning.benchmarks.measure import interleaved_ms, peak_mb
from sm_diffusion.sampling import (
    Ancestral,
    ConfidenceOrder,
    RowNoise,
    Sampler,
    Timetable,
    TokenSampling,
    UnmaskPolicy,
    blank,
)
from sm_diffusion.sampling.orders.confidence import build_measure
from sm_diffusion.sampling.reference.plain import plain_sample

TOP_PS = (1.0, 0.9)
WANTED = {"plain_over_mdlm": 5.0, "plain_over_sm": 5.0, "sm_over_mdlm": 1.05}
_PLAIN_MEMORY_STEPS = 1  # every plain step holds the same tensors


def build_predictors(*, vocab: int, width: int, blocks: int, top_k: int) -> tuple[Predictor, Predictor]:
    """(MDLM, soft-masked) over one random DiT whose predictions are neither flat nor certain."""
    torch.manual_seed(0)
    shape = DiTShape(vocab_size=vocab, width=width, num_blocks=blocks, num_heads=max(1, width // 64), cond_width=64)
    model = DiT(shape, parameterization=Subs(vocab - 1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "adaLN" in name or name.startswith("output_layer"):
                parameter.add_(torch.randn(parameter.shape) * 2 / width**0.5)
    soft_mask = SoftMask(top_k=top_k, omega_s=0.6, omega_a=1.0, omega_b=-2.0)
    soft = SoftMaskPredictor(model.eval(), soft_mask, mask_id=vocab - 1, mixing=mixing.linear)
    return HardMaskPredictor(model, mask_id=vocab - 1), soft


class Bench:
    """The samplers under comparison, over the same network, for one top_p."""

    def __init__(self, predictors: tuple[Predictor, Predictor], *, length: int, batch: int, top_p: float) -> None:
        self.mdlm, self.soft = predictors
        self.canvas = blank(batch, length, mask_id=self.mdlm.mask_id)
        self.top_p = top_p

    def ours(self, predictor: Predictor, policy: UnmaskPolicy) -> Tensor:
        sampler = Sampler(predictor, policy, sampling=TokenSampling(top_p=self.top_p))
        seeds = list(range(self.canvas.ids_BL.shape[0]))
        return sampler.sample(self.canvas, RowNoise(seeds, self.canvas.positions_BL)).ids_BL

    def plain(self, num_steps: int) -> Tensor:
        policy, generator = Ancestral(num_steps=num_steps), torch.Generator().manual_seed(0)
        return plain_sample(self.mdlm, policy, self.canvas.ids_BL, top_p=self.top_p, generator=generator)

    def runs(self, num_steps: int) -> dict[str, Callable[[], object]]:
        """plain, mdlm and sm as named in the report; the confidence orders run the head at every mask even as MDLM."""
        measure, pace = build_measure("probability"), Timetable(num_steps=num_steps)
        return {
            "plain": lambda: self.plain(num_steps),
            "mdlm": lambda: self.ours(self.mdlm, Ancestral(num_steps=num_steps)),
            "sm": lambda: self.ours(self.soft, Ancestral(num_steps=num_steps)),
            "mdlm_confidence": lambda: self.ours(self.mdlm, ConfidenceOrder(measure=measure, pace=pace)),
            "sm_confidence": lambda: self.ours(self.soft, ConfidenceOrder(measure=measure, pace=pace)),
        }


    def passes(self, num_steps: int) -> dict[str, list[Pass]]:
        """What mdlm and sm ran, counted."""
        network, runs, found = self.network, self.runs(num_steps), {}
        for name in ("mdlm", "sm"):
            with counted(network) as found[name]:
                runs[name]()
        return found

    @property
    def network(self) -> DiT:
        assert isinstance(self.mdlm.denoiser, DiT)
        return self.mdlm.denoiser


def own_peak_mb(step: Callable[[], object]) -> float:
    """Peak with nothing kept from earlier steps, so that buffers the step leaves for the next count as its own."""
    scratch.release()
    return peak_mb(step)


def measure_one(bench: Bench, passes: dict[str, list[Pass]], *, num_steps: int, repeats: int) -> dict[str, Any]:
    """Milliseconds a step, peak MB and ratios at one top_p. `passes`: of mdlm and sm, which no top_p changes."""
    runs = bench.runs(num_steps)
    length = bench.canvas.ids_BL.shape[1]
    floors = {f"{name}_floor": products_alone(bench.network, made, length=length) for name, made in passes.items()}
    for warm in [*bench.runs(1).values(), *floors.values()]:
        warm()
    timed = interleaved_ms(runs | floors, repeats=repeats, warmup=0)
    ms = {name: value / num_steps for name, value in timed.items()}
    mb = {name: own_peak_mb(step) for name, step in runs.items() if name != "plain"}
    mb["plain"] = own_peak_mb(lambda: bench.plain(_PLAIN_MEMORY_STEPS))
    results: dict[str, Any] = {f"{name}_ms": value for name, value in ms.items()}
    results |= {f"{name}_peak_mb": mb[name] for name in runs}
    results["ratios"] = {
        "plain_over_mdlm": ms["plain"] / ms["mdlm"],
        "plain_over_sm": ms["plain"] / ms["sm"],
        "sm_over_mdlm": ms["sm"] / ms["mdlm"],
        "sm_over_mdlm_floor": ms["sm_floor"] / ms["mdlm_floor"],
        "mdlm_over_floor": ms["mdlm"] / ms["mdlm_floor"],
        "sm_over_floor": ms["sm"] / ms["sm_floor"],
        "sm_over_mdlm_confidence": ms["sm_confidence"] / ms["mdlm_confidence"],
        "plain_over_mdlm_memory": mb["plain"] / mb["mdlm"],
        "plain_over_sm_memory": mb["plain"] / mb["sm"],
    }
    return results


def run(
    *,
    vocab: int = 50_258,
    width: int = 256,
    blocks: int = 4,
    length: int = 256,
    batch: int = 2,
    steps: int = 32,
    repeats: int = 1,
) -> dict[str, Any]:
    """All figures. The keys at the top are those of top_p = 1, where the plain sampler need not sort and is fastest;
    `by_top_p` holds each. `logits_mb`: what one float32 (B, L, V) tensor would take. `arithmetic`: its products."""
    predictors = build_predictors(vocab=vocab, width=width, blocks=blocks, top_k=3)
    counting = Bench(predictors, length=length, batch=batch, top_p=1.0)
    passes = counting.passes(steps)
    products = {
        name: arithmetic(counting.network, made, length=length, steps=steps) for name, made in passes.items()
    }
    by_top_p = {}
    for top_p in TOP_PS:
        bench = Bench(predictors, length=length, batch=batch, top_p=top_p)
        by_top_p[str(top_p)] = measure_one(bench, passes, num_steps=steps, repeats=repeats)
    settings = {"vocab": vocab, "width": width, "blocks": blocks, "length": length, "batch": batch, "steps": steps}
    found = environment()
    return by_top_p[str(TOP_PS[0])] | {
        "by_top_p": by_top_p,
        "arithmetic": products | {"sm_over_mdlm": products["sm"]["gflop"] / products["mdlm"]["gflop"]},
        "logits_mb": batch * length * vocab * 4 / 1e6,
        "settings": settings | {"repeats": repeats},
        "machine": found["machine"],
        "versions": found["versions"],
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vocab", type=int, default=50_258, help="vocabulary, mask included (default %(default)s)")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=32, help="sampling steps (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="timed rounds of whole runs; the median is reported")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")


def run_cli(args: argparse.Namespace) -> int:
    results = run(
        vocab=args.vocab,
        width=args.width,
        blocks=args.blocks,
        length=args.length,
        batch=args.batch,
        steps=args.steps,
        repeats=args.repeats,
    )
    for top_p, found in results["by_top_p"].items():
        print(f"top_p = {top_p}\n{'sampler':<18}{'ms/step':>10}{'peak MB':>12}")
        for name in ("plain", "mdlm", "sm", "mdlm_confidence", "sm_confidence"):
            print(f"{name:<18}{found[f'{name}_ms']:>10.1f}{found[f'{name}_peak_mb']:>12.1f}")
        for name, wanted in WANTED.items():
            value = found["ratios"][name]
            met = value <= wanted if name == "sm_over_mdlm" else value >= wanted
            bound = "at most" if name == "sm_over_mdlm" else "at least"
            print(f"{name} = {value:.3f} (wanted {bound} {wanted}: {'met' if met else 'missed'})")
    print(f"one float32 (B, L, V) tensor: {results['logits_mb']:.1f} MB; ours never holds one")
    print(f"{'a step must multiply':<22}{'head rows':>10}{'blocks GFLOP':>14}{'head GFLOP':>12}{'alone ms':>10}")
    for name in ("mdlm", "sm"):
        found = results["arithmetic"][name]
        print(
            f"{name:<22}{found['head_rows']:>10.1f}{found['forward_gflop']:>14.2f}{found['head_gflop']:>12.2f}"
            f"{results[f'{name}_floor_ms']:>10.1f}"
        )
    print(f"sm / mdlm by operations {results['arithmetic']['sm_over_mdlm']:.3f}, ", end="")
    print(f"by the products alone {results['ratios']['sm_over_mdlm_floor']:.3f}: no ancestral sampler can do better,")
    print("MDLM needs logits only where it draws, a memory at every mask. The confidence orders need them at every")
    print("mask in both: their ratio is what the feedback itself costs")
    if args.json is not None:
        write_json(args.json, results)
        print(f"written to {args.json}")
    return 0
