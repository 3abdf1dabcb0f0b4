"""Every GPU check and benchmark, in one script: needs torch, transformers, peft and this repository, nothing else.

    python benchmarks/gpu.py --json benchmarks/results/gpu.json          # on a CUDA machine; the parts one by one:
    python benchmarks/gpu.py --only backbone --json 7b.json              # numerics, step, train, backbone
    python benchmarks/gpu.py --smoke                                     # the same code on a CPU, tiny

It checks bfloat16 and the attention backends against float32 on the CPU, times a training step (plain, MDLM, SM) at the
169M model, trains a small model on the embedded corpus for a while, and measures a 7B backbone with random weights:
fine-tuning step, peak memory, decoding with and without soft-masking, caches and threshold. No step needs the internet.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from sm_diffusion.data.corpora.python_corpus import PythonCorpus  # noqa: E402
from sm_diffusion.data.tokenizers.base import ByteTokenizer  # noqa: E402
from sm_diffusion.denoisers.dit.model import DiT, DiTShape  # noqa: E402
from sm_diffusion.diffusion import mixing  # noqa: E402
from sm_diffusion.diffusion.objective import MDLMObjective  # noqa: E402
from sm_diffusion.diffusion.parameterization import Subs  # noqa: E402
from sm_diffusion.diffusion.predictor import HardMaskPredictor, Predictor, SoftMaskPredictor  # noqa: E402
from sm_diffusion.diffusion.schedule import LogLinear, StratifiedTimes  # noqa: E402
from sm_diffusion.diffusion.soft_mask import SoftMask  # noqa: E402
from sm_diffusion.evaluation.results import environment  # noqa: E402
from sm_diffusion.files import write_json  # noqa: E402
from sm_diffusion.planning.benchmarks import backbone as bench_backbone  # noqa: E402
from sm_diffusion.planning.benchmarks import train as bench_train  # noqa: E402
from sm_diffusion.training import rng  # noqa: E402
from sm_diffusion.types import Batch, Draws  # noqa: E402

# Dense bfloat16 peak, TFLOP/s, from the vendor's data sheets.
PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "B200": 2250.0}


def make_predictor(shape: DiTShape, *, soft: bool, attention: str = "auto", dropout: float = 0.0) -> Predictor:
    mask_id = shape.vocab_size - 1
    torch.manual_seed(0)
    model = DiT(shape, parameterization=Subs(mask_id), attention=attention, dropout=dropout)
    if not soft:
        return HardMaskPredictor(model, mask_id=mask_id)
    soft_mask = SoftMask(top_k=3, omega_s=0.27, omega_a=3.05, omega_b=-0.75)
    return SoftMaskPredictor(model, soft_mask, mask_id=mask_id, mixing=mixing.linear)


def random_problem(shape: DiTShape, batch: int, length: int) -> tuple[Batch, Draws]:
    generator = torch.Generator().manual_seed(1)
    ids_BL = torch.randint(0, shape.vocab_size - 1, (batch, length), generator=generator)
    draws = rng.training_draws(list(range(batch)), length, num_rows=batch, seed=0, step=0)
    return Batch(ids_BL, draws.rows_B), draws


def to_device(value: Any, device: str) -> Any:
    return type(value)(*(item.to(device) if isinstance(item, Tensor) else item for item in value))


def check_numerics(device: str) -> dict[str, Any]:
    """Loss and gradient norms of one step: float32 on the CPU, against float32 and bfloat16 on the device."""
    shape = DiTShape(vocab_size=5_003, width=128, num_blocks=2, num_heads=2, cond_width=32)
    objective = MDLMObjective(schedule=LogLinear(), times=StratifiedTimes(), mask_id=shape.vocab_size - 1)
    batch, draws = random_problem(shape, 4, 128)

    def step(where: str, dtype: torch.dtype | None, attention: str) -> tuple[float, dict[str, Tensor]]:
        predictor = make_predictor(shape, soft=True, attention=attention)
        with torch.no_grad():
            for name, parameter in predictor.named_parameters():
                if "adaLN" in name or "output_layer.linear" in name:  # zero at the start: nothing to compare
                    parameter.copy_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
        predictor.to(where)
        with torch.autocast(where.split(":")[0], dtype or torch.bfloat16, enabled=dtype is not None):
            out = objective(predictor, to_device(batch, where), to_device(draws, where), feedback=True)
        out.loss.backward()
        grads = {n: p.grad.cpu() for n, p in predictor.named_parameters() if p.grad is not None}
        return float(out.loss.detach()), grads

    reference, reference_grads = step("cpu", None, "sdpa")
    report: dict[str, Any] = {"reference_loss": reference}
    backends = ["sdpa"]
    try:
        import flash_attn  # noqa: F401

        backends.append("flash")
    except ImportError:
        report["flash_attn"] = "not installed"
    for attention in backends:
        for label, dtype, bound in (("float32", None, 1e-3), ("bfloat16", torch.bfloat16, 3e-2)):
            loss, grads = step(device, dtype, attention)
            worst = max(
                float((grads[n] - g).norm() / g.norm().clamp_min(1e-12))
                for n, g in reference_grads.items()
                if g.norm() > 1e-6
            )
            error = abs(loss - reference) / abs(reference)
            report[f"{attention}_{label}"] = {"loss_error": error, "worst_gradient_error": worst, "ok": error < bound}
    return report


def time_steps(device: str, *, smoke: bool) -> dict[str, Any]:
    """plain / MDLM / SM training steps of the 169M model at 1,024 tokens; the plain one at the batch that fits."""
    sizes = {"vocab": 503, "width": 64, "blocks": 2, "heads": 2, "length": 64} if smoke else {
        "vocab": 50_258, "width": 768, "blocks": 12, "heads": 12, "length": 1_024}
    report: dict[str, Any] = {}
    for batch in (2,) if smoke else (8, 32):
        args = argparse.Namespace(**sizes, batch=batch, top_k=3, repeats=2 if smoke else 10, device=device, json=None)
        try:
            found = bench_train.measure(args)
        except torch.OutOfMemoryError as error:
            report[f"batch_{batch}"] = {"error": f"out of memory: {str(error).splitlines()[0]}"}
            torch.cuda.empty_cache()
            continue
        tokens = batch * sizes["length"]
        shape = DiTShape(vocab_size=sizes["vocab"], width=sizes["width"], num_blocks=sizes["blocks"],
                         num_heads=sizes["heads"], cond_width=128)
        blocks, head = shape.flops_per_token(sizes["length"])
        for name, passes in (("mdlm", 3), ("sm", 4)):
            seconds = found[f"{name}_ms"] / 1e3
            found[f"{name}_tokens_per_second"] = tokens / seconds
            flops = tokens * (blocks + 0.5 * head) * passes / seconds
            found[f"{name}_model_tflops"] = flops / 1e12
            peak = peak_tflops(device)
            found[f"{name}_mfu"] = flops / 1e12 / peak if peak else None
        report[f"batch_{batch}"] = {k: v for k, v in found.items() if k not in ("machine", "versions")}
        if device != "cpu":
            torch.cuda.empty_cache()
    return report


def backbone(device: str, *, smoke: bool) -> dict[str, Any]:
    """The 7B of the paper's second half: Dream's sizes, published fine-tuning settings, 128 new tokens."""
    sizes = {"model": "qwen2_tiny", "length": 48, "prompt": 12, "new": 16, "block": 4} if smoke else {
        "model": "dream_7b", "length": 2_048, "prompt": 256, "new": 128, "block": 32}
    args = argparse.Namespace(**sizes, batch=1, repeats=1 if smoke else 2, device=device, only=None, json=None)
    found = bench_backbone.measure(args)
    print("\n".join(bench_backbone.lines_of(found)), flush=True)
    return {key: value for key, value in found.items() if key not in ("machine", "versions")}


def peak_tflops(device: str) -> float | None:
    if device == "cpu":
        return None
    name = torch.cuda.get_device_name()
    return next((value for key, value in PEAK_TFLOPS.items() if key in name), None)


def train_a_while(device: str, *, seconds: float, smoke: bool) -> dict[str, Any]:
    """MDLM, then both continuations for equal steps, on the standard library as bytes; held-out bits per byte."""
    length, batch = (64, 8) if smoke else (256, 256)
    source, tokenizer = PythonCorpus(kind="code", validation_fraction=0.05), ByteTokenizer()
    limit = 200_000 if smoke else 10**9

    def windows(documents: Any) -> Tensor:
        ids: list[int] = []
        for document in documents:
            ids += [*tokenizer.encode_batch([document.text])[0], tokenizer.eos_id]
            if len(ids) > limit:
                break
        return torch.tensor(ids[: len(ids) // length * length], dtype=torch.int64).view(-1, length)

    data, held_out = windows(source.train()).to(device), windows(source.validation())[:256].to(device)
    shape = (DiTShape(vocab_size=258, width=64, num_blocks=2, num_heads=2, cond_width=32) if smoke else
             DiTShape(vocab_size=258, width=512, num_blocks=8, num_heads=8, cond_width=128))
    objective = MDLMObjective(schedule=LogLinear(), times=StratifiedTimes(), mask_id=257)

    def loss_of(predictor: Predictor, ids_BL: Tensor, step: int, feedback: bool) -> Any:
        rows = list(range(ids_BL.shape[0]))
        draws = to_device(rng.training_draws(rows, length, num_rows=len(rows), seed=1, step=step), device)
        with torch.autocast(device.split(":")[0], torch.bfloat16, enabled=device != "cpu"):
            return objective(predictor, Batch(ids_BL, draws.rows_B), draws, feedback=feedback)

    def fit(predictor: Predictor, *, start: int, stop: Callable[[int, float], bool], p_sm: float) -> int:
        omegas = [p for n, p in predictor.named_parameters() if n.startswith("soft_mask")]
        network = [p for n, p in predictor.named_parameters() if not n.startswith("soft_mask")]
        optimizer = torch.optim.AdamW([{"params": network, "lr": 1e-3}, {"params": omegas, "lr": 1e-2}],
                                      weight_decay=0.0, fused=True)
        begin, step = time.perf_counter(), 0
        while not stop(step, time.perf_counter() - begin):
            generator = torch.Generator().manual_seed(start + step)
            rows_B = torch.randint(0, len(data), (batch,), generator=generator).to(device)
            optimizer.zero_grad(set_to_none=True)
            loss_of(predictor, data[rows_B], start + step, rng.coin(seed=1, step=start + step) < p_sm).loss.backward()
            torch.nn.utils.clip_grad_norm_(predictor.parameters(), 1.0)
            optimizer.step()
            step += 1
        return step

    @torch.no_grad()
    def bits(predictor: Predictor, feedback: bool) -> float:
        sums = [loss_of(predictor, part, 10**9 + k, feedback) for k, part in enumerate(held_out.split(64))]
        return float(sum(s.nll_sum for s in sums) / sum(s.num_tokens for s in sums)) / math.log(2)

    base = make_predictor(shape, soft=False).to(device)
    steps = fit(base, start=0, stop=lambda _, spent: spent > seconds / 2, p_sm=0.0)
    report: dict[str, Any] = {"pretrain_steps": steps, "pretrain_bits_per_byte": bits(base, False)}
    state, continuation = base.denoiser.state_dict(), 0
    for name, soft in (("sm", True), ("binary", False)):
        predictor = make_predictor(shape, soft=soft).to(device)
        predictor.denoiser.load_state_dict(state)
        stop = (lambda _, spent: spent > seconds / 4) if soft else (lambda done, _, n=continuation: done >= n)
        continuation = fit(predictor, start=steps, stop=stop, p_sm=0.8)
        report[f"{name}_steps"] = continuation
        report[f"{name}_bits_per_byte"] = bits(predictor, True)
        if isinstance(predictor, SoftMaskPredictor):
            report["sm_bits_per_byte_without_feedback"] = bits(predictor, False)
            soft_mask = predictor.soft_mask
            report["omegas"] = [float(v.detach()) for v in (soft_mask.omega_s, soft_mask.omega_a, soft_mask.omega_b)]
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the report to this file, too")
    parser.add_argument("--smoke", action="store_true", help="tiny, on the CPU: checks this script itself")
    parser.add_argument("--only", choices=("numerics", "step", "train", "backbone"), help="one part; default: all")
    parser.add_argument("--train-seconds", type=float, default=150.0)
    args = parser.parse_args()
    if not args.smoke and not torch.cuda.is_available():
        print("error: no CUDA device here; --smoke runs the same code on the CPU", file=sys.stderr)
        return 2
    device = "cpu" if args.smoke else "cuda"
    report: dict[str, Any] = {"environment": environment(), "smoke": args.smoke}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "numerics": lambda: check_numerics(device),
        "step": lambda: time_steps(device, smoke=args.smoke),
        "train": lambda: train_a_while(device, seconds=4.0 if args.smoke else args.train_seconds, smoke=args.smoke),
        "backbone": lambda: backbone(device, smoke=args.smoke),
    }
    for name, part in parts.items():
        if args.only not in (None, name):
            continue
        begin = time.perf_counter()
        report[name] = part()
        print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)
        print("  " + "\n  ".join(f"{k}: {v}" for k, v in report[name].items()), flush=True)
        if args.json is not None:
            write_json(args.json, report)  # after every part: a machine may be taken away
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
