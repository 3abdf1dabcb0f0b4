"""`smd bench data`: tokens/s prepared and loaded by one core, against what a GPU eats; memory of the loader.

The text is the standard library's English and code, repeated with a number each time so that no two documents are
equal, as .jsonl files in a temporary folder. Speeds are per second of processor time, so that a busy machine does not
show in them. Memory is the anonymous memory of a fresh process that opens the shards and reads batches from all over
them; pages of the mapped shards are the kernel's to drop and are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sm_diffusion.data.corpora.file_corpus import CorpusFiles, FileCorpus
from sm_diffusion.data.corpora.filters import RecordFilter
from sm_diffusion.data.corpora.hub import LocalFolder
from sm_diffusion.data.loader import LoaderSettings, table_loader
from sm_diffusion.data.stores.arrow_cache import TokenCache
from sm_diffusion.data.stores.shard_preparer import ShardPreparer
from sm_diffusion.data.tokenizers.base import ByteTokenizer, TextTokenizer
from sm_diffusion.data.tokenizers.build import TokenizerSpec, build_tokenizer
from sm_diffusion.files import write_json
from sm_diffusion.planning.arithmetic import PEAK_TFLOPS
from sm_diffusion.planning.benchmarks.packing import MICRO_BATCHES, measure_packing
from sm_diffusion.planning.plan import make_plan
from sm_diffusion.types import UserError

LENGTH = 1024
BATCH = 64
DOCUMENT_CHARACTERS = 5_000  # about those of OpenWebText
GPU = "B200"  # the fastest that `smd plan` knows
MFU = 0.5  # assumed
PARAMETERS = 169_627_218  # of model=dit_169m
READ_MEMORY = """
import json, sys, threading
from pathlib import Path
from sm_diffusion.data.loader import LoaderSettings, table_loader
from sm_diffusion.data.stores.shard_format import open_shards, read_manifest

def anonymous_kb():
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1])
    return 0

peak, over = 0, threading.Event()
def watch():
    global peak
    while not over.wait(0.001):
        peak = max(peak, anonymous_kb())

folder = Path(sys.argv[1])
before = anonymous_kb()
watcher = threading.Thread(target=watch, daemon=True)  # an error below must end the process
watcher.start()
cache = open_shards(folder, read_manifest(folder))
settings = LoaderSettings(global_batch_sequences=64, micro_batch_sequences=64, eval_batch_sequences=64, num_workers=0,
                          seed=1)
for number, batch in enumerate(table_loader(cache.train, settings, rank=0, world_size=1)):
    if number == 100:
        break
after = anonymous_kb()
over.set()
watcher.join()
print(json.dumps([before, after, max(peak, after), len(cache.train)]))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--megabytes", type=int, default=10, help="of text to prepare (default %(default)s)")
    parser.add_argument(
        "--large-megabytes", type=int, default=1000, help="of text for the memory of the loader (default %(default)s)"
    )
    parser.add_argument("--small", action="store_true", help="1 and 3 MB: a minute, to see that it runs")
    parser.add_argument("--tokenizer", default="", help="folder or hub name; default: a BPE of 8,192 trained here")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")


def run_cli(args: argparse.Namespace) -> int:
    megabytes, large = (1, 3) if args.small else (args.megabytes, args.large_megabytes)
    for name, value in (("--megabytes", megabytes), ("--large-megabytes", large)):
        if value < 1:
            raise UserError(f"{name} {value}: give at least 1")
    with tempfile.TemporaryDirectory(prefix="smd-bench-data-") as folder:
        free, needed = shutil.disk_usage(folder).free, 4e6 * large  # the text, two bytes a token, and some room
        if free < needed:
            raise UserError(
                f"--large-megabytes {large}: needs {needed / 1e9:.1f} GB in {folder}, where {free / 1e9:.1f} GB are "
                f"free: give a smaller number, or set TMPDIR to another disk"
            )
        found = measure(Path(folder), megabytes=megabytes, large=large, tokenizer=args.tokenizer)
    print("\n".join(report(found)))
    if args.json is not None:
        write_json(args.json, found)
        print(f"written to {args.json}")
    return 0


def measure(folder: Path, *, megabytes: int, large: int, tokenizer: str) -> dict[str, Any]:
    """All figures; writes below `folder`."""
    small = _corpus(folder / "small", megabytes)
    spec = TokenizerSpec("hub", path=tokenizer) if tokenizer else TokenizerSpec("bpe", vocab_size=8192)
    chosen = build_tokenizer(spec, source=small, cache_dir=folder)
    found: dict[str, Any] = {"tokenizer": tokenizer or "BPE of 8,192", "cores": len(os.sched_getaffinity(0))}
    _, seconds, cache = _prepare(small, chosen, folder / "bpe")
    counts = cache.meta.splits["train"]
    found |= {
        "prepared_tokens_per_second_per_core": (counts.tokens + cache.meta.splits["validation"].tokens) / seconds,
        "bytes_per_token": counts.text_bytes / counts.tokens,
    }
    settings = LoaderSettings(
        global_batch_sequences=BATCH,
        micro_batch_sequences=BATCH,
        eval_batch_sequences=BATCH,
        num_workers=0,
        seed=1,
    )
    loader = table_loader(cache.train, settings, rank=0, world_size=1)
    tokens, start = 0, time.process_time()
    while time.process_time() - start < 1.0:
        for batch in loader:
            tokens += batch.ids_BL.numel()
    found["loaded_tokens_per_second_per_core"] = tokens / (time.process_time() - start)
    found["real_share"] = measure_packing(folder / "chats")
    for name, size in (("small", megabytes), ("large", large)):
        corpus = small if name == "small" else _corpus(folder / "large", size)
        path, _, _ = _prepare(corpus, ByteTokenizer(), folder / f"bytes-{name}", workers=None)
        found[f"memory_{name}"] = {"megabytes": size, **_read_memory(path)}
    for variant in ("mdlm", "soft_masked"):
        flops = flops_per_token(variant)
        found[f"flops_per_token_{variant}"] = flops
        found[f"consumed_tokens_per_second_{variant}"] = PEAK_TFLOPS[GPU] * 1e12 * MFU / flops
    return found


def report(found: dict[str, Any]) -> list[str]:
    """The figures with the arithmetic."""
    prepared, loaded = found["prepared_tokens_per_second_per_core"], found["loaded_tokens_per_second_per_core"]
    peak, most = PEAK_TFLOPS[GPU], found["consumed_tokens_per_second_mdlm"]
    rough = peak * 1e12 * MFU / (6 * PARAMETERS)
    lines = [
        f"prepare  {prepared:,.0f} tokens/s a core ({found['tokenizer']}, {found['bytes_per_token']:.2f} bytes a "
        f"token): 9.0e9 tokens of OpenWebText take {9e9 / prepared / 3600 / 32:.1f} hours on 32 such cores",
        f"loader   {loaded:,.0f} tokens/s a core, no worker, shards in memory",
        f"model    169M DiT: {peak * 1e12:.3g} FLOP/s ({GPU}, dense bfloat16) x {MFU:.0%} MFU / FLOP a token",
    ]
    for variant in ("mdlm", "soft_masked"):
        flops, eaten = found[f"flops_per_token_{variant}"], found[f"consumed_tokens_per_second_{variant}"]
        lines.append(f"         {variant:<12} / {flops:.3g} = {eaten:,.0f} tokens/s")
    lines += [
        f"         by 6 N       / {6 * PARAMETERS:.3g} = {rough:,.0f} tokens/s, N = {PARAMETERS:,}",
        f"         the loader gives {loaded / most:.1f} times the largest from one core; streaming needs "
        f"{most / prepared:.1f} cores a GPU to tokenise as fast",
    ]
    shares = found["real_share"]
    lines += [
        f"packing  micro-batches of {size} conversations: {shares[f'padded_{size}']:.0%} of the positions are real "
        f"tokens when padded, {shares[f'packed_{size}']:.0%} when packed"
        for size in MICRO_BATCHES
    ]
    for name in ("small", "large"):
        memory = found[f"memory_{name}"]
        lines.append(
            f"memory   {memory['megabytes']:,} MB of text, {memory['sequences']:,} sequences: "
            f"{memory['after_mb'] - memory['before_mb']:.1f} MB on top of {memory['before_mb']:.1f} "
            f"(while an epoch is being ordered {memory['peak_mb'] - memory['before_mb']:.1f})"
        )
    return lines


def flops_per_token(variant: str) -> float:
    """FLOPs of one trained token: 169M DiT, 1,024 tokens, as `smd plan` counts them."""
    from sm_diffusion.config.compose import compose_config

    config = compose_config("train", ["model=dit_169m", f"variant={variant}", "data=openwebtext"])
    return float(make_plan(config, vocab=50_258, on_gpu=True, num_devices=1).flops.training)


def _corpus(folder: Path, megabytes: int) -> FileCorpus:
    folder.mkdir()
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for text in _texts(megabytes * 1_000_000):
            file.write(json.dumps({"text": text}) + "\n")
    return FileCorpus(
        name="bench",
        location=LocalFolder(str(folder)),
        files=CorpusFiles(train_files=("*.jsonl",), validation_fraction=0.05, slice_bytes=25_000_000),
        record_filter=RecordFilter(text_field="text"),
    )


def _texts(num_bytes: int) -> Iterator[str]:
    from sm_diffusion.data.corpora.python_corpus import standard_library

    documents = [
        text[start : start + DOCUMENT_CHARACTERS]
        for _, text in standard_library()
        for start in range(0, len(text), DOCUMENT_CHARACTERS)
    ]
    number = 0
    while num_bytes > 0:
        text = f"# {number}\n{documents[number % len(documents)]}"
        num_bytes -= len(text)
        number += 1
        yield text


def _prepare(
    corpus: FileCorpus, tokenizer: TextTokenizer, cache_dir: Path, *, workers: int | None = 1
) -> tuple[Path, float, TokenCache]:
    """Folder, processor seconds of this process, and the tables. workers: processes; None: all cores."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    preparer = ShardPreparer(source=corpus, tokenizer=tokenizer, length=LENGTH, cache_dir=cache_dir)
    start = time.process_time()
    cache = preparer.prepare(workers=workers)
    return preparer.folder, time.process_time() - start, cache


def _read_memory(folder: Path) -> dict[str, float]:
    """MB before opening the shards, after 100 batches, and at most; number of sequences."""
    done = subprocess.run(
        [sys.executable, "-c", READ_MEMORY, str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the process that measures memory failed: {done.stderr[-500:]}")
    before, after, peak, sequences = json.loads(done.stdout)
    return {"before_mb": before / 1e3, "after_mb": after / 1e3, "peak_mb": peak / 1e3, "sequences": sequences}
