"""`smd bench train`: a training step as the field writes it against ours, MDLM and soft-masked, in one run."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sm_diffusion.denoisers.dit.model import DiT, DiTShape
from sm_diffusion.diffusion import mixing
from sm_diffusion.diffusion.contracts import Head
from sm_diffusion.diffusion.objective import MDLMObjective
from sm_diffusion.diffusion.parameterization import NEGATIVE, Subs
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor
from sm_diffusion.diffusion.readouts import scratch
from sm_diffusion.diffusion.schedule import LogLinear, StratifiedTimes
from sm_diffusion.diffusion.soft_mask import SoftMask
from sm_diffusion.evaluation.results import environment
from sm_diffusion.files import write_json
from sm_diffusion.planning.benchmarks.measure import interleaved_ms, peak_mb
from sm_diffusion.types import Batch, Draws

WANTED = {"plain_over_mdlm": 2.5, "plain_over_mdlm_memory": 4.0, "sm_over_mdlm": 1.37}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--vocab", type=int, default=50_258, help="vocabulary, mask included (default %(default)s)")
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds; the median is reported")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")


class PlainMDLMLoss:
    """MDLM's loss with the whole (B, L, V) tensor: SUBS on full logits, gather, weighted mean. The comparison."""

    def __init__(self, objective: MDLMObjective, mask_id: int) -> None:
        self.objective = objective
        self.mask_id = mask_id

    def __call__(self, predictor: Predictor, batch: Batch, draws: Draws) -> Tensor:
        t_B = self.objective.times(draws)
        masked_BL = draws.mask_BL < self.objective.schedule.mask_probability(t_B)[:, None]
        ids_t_BL = batch.ids_BL.masked_fill(masked_BL, self.mask_id)

        def readout(hidden_BLD: Tensor, head: Head) -> Tensor:
            return torch.nn.functional.linear(hidden_BLD, head.weight_VD, head.bias_V).float()

        logits_BLV = predictor(ids_t_BL, None, readout)
        logits_BLV[..., self.mask_id] += NEGATIVE
        logits_BLV = logits_BLV - torch.logsumexp(logits_BLV, -1, keepdim=True)
        kept_BL = ids_t_BL != self.mask_id
        logits_BLV[kept_BL] = NEGATIVE
        logits_BLV[kept_BL, ids_t_BL[kept_BL]] = 0
        log_p_BL = logits_BLV.gather(-1, batch.ids_BL[..., None]).squeeze(-1)
        loss: Tensor = (-log_p_BL * self.objective.schedule.loss_weight(t_B)[:, None]).mean()
        return loss


def make_steps(args: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """plain, mdlm and sm: one optimizer step each (zero, forward, backward, AdamW) on equal data and noise."""
    device = torch.device(args.device)
    mask_id = args.vocab - 1
    objective = MDLMObjective(schedule=LogLinear(), times=StratifiedTimes(), mask_id=mask_id)
    generator = torch.Generator().manual_seed(0)
    ids_BL = torch.randint(0, mask_id, (args.batch, args.length), generator=generator).to(device)
    draws = Draws(
        torch.rand(args.batch, generator=generator).to(device),
        torch.rand(args.batch, args.length, generator=generator).to(device),
        torch.arange(args.batch, device=device),
        args.batch,
    )
    batch = Batch(ids_BL, draws.rows_B)

    def predictor(soft: bool) -> Predictor:
        torch.manual_seed(0)
        shape = DiTShape(
            vocab_size=args.vocab, width=args.width, num_blocks=args.blocks, num_heads=args.heads, cond_width=128
        )
        model = DiT(shape, parameterization=Subs(mask_id)).to(device)
        if not soft:
            return HardMaskPredictor(model, mask_id=mask_id)
        soft_mask = SoftMask(top_k=args.top_k, omega_s=0.27, omega_a=3.05, omega_b=-0.75).to(device)
        return SoftMaskPredictor(model, soft_mask, mask_id=mask_id, mixing=mixing.linear)

    plain_loss = PlainMDLMLoss(objective, mask_id)
    losses: dict[str, tuple[bool, Callable[[Predictor], Tensor]]] = {
        "plain": (False, lambda p: plain_loss(p, batch, draws)),
        "mdlm": (False, lambda p: objective(p, batch, draws, feedback=False).loss),
        "sm": (True, lambda p: objective(p, batch, draws, feedback=True).loss),
    }
    return {name: _step(predictor(soft), loss, device) for name, (soft, loss) in losses.items()}


def _step(predictor: Predictor, loss_of: Callable[[Predictor], Tensor], device: torch.device) -> Callable[[], Tensor]:
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=3e-4, weight_decay=0.0, fused=True)

    def step() -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = loss_of(predictor)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return loss.detach()

    return step


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Times and peak memory of the three steps; `ratios` compares them. First losses must agree, or nothing counts."""
    steps = make_steps(args)
    first = {name: float(step()) for name, step in steps.items()}
    if abs(first["plain"] - first["mdlm"]) > 1e-3 * abs(first["plain"]):
        raise RuntimeError(f"the plain and the chunked loss disagree: {first}")
    ms = interleaved_ms(steps, repeats=args.repeats)
    # What the chunked steps keep between uses is theirs, too.
    kept = scratch.kept_bytes() / 1e6
    mb = {name: peak_mb(step) + (0.0 if name == "plain" else kept) for name, step in steps.items()}
    results: dict[str, Any] = {f"{name}_ms": ms[name] for name in steps}
    results |= {f"{name}_peak_mb": mb[name] for name in steps}
    results["ratios"] = {
        "plain_over_mdlm": ms["plain"] / ms["mdlm"],
        "plain_over_mdlm_memory": mb["plain"] / mb["mdlm"],
        "sm_over_mdlm": ms["sm"] / ms["mdlm"],
    }
    settings = {key: value for key, value in vars(args).items() if isinstance(value, int | str)}
    found = environment()
    return results | {"settings": settings, "machine": found["machine"], "versions": found["versions"]}


def run_cli(args: argparse.Namespace) -> int:
    results = measure(args)
    print(f"{'step':<8}{'ms':>10}{'peak MB':>12}")
    for name in ("plain", "mdlm", "sm"):
        print(f"{name:<8}{results[f'{name}_ms']:>10.1f}{results[f'{name}_peak_mb']:>12.1f}")
    for name, wanted in WANTED.items():
        value = results["ratios"][name]
        met = value <= wanted if name == "sm_over_mdlm" else value >= wanted
        bound = "at most" if name == "sm_over_mdlm" else "at least"
        print(f"{name} = {value:.3f} (wanted {bound} {wanted}: {'met' if met else 'missed'})")
    print("one extra forward pass costs 1.333 by arithmetic alone (forward 1, backward 2)")
    print(json.dumps(results["machine"]))
    if args.json is not None:
        write_json(args.json, results)
        print(f"written to {args.json}")
    return 0
