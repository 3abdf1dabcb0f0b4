"""`smd bench data`: tokens a second prepared on one core and loaded, against what a 169M model eats; loader memory.

The text is the standard library's English and code, repeated with a number each time so that no two documents are
equal, as .jsonl files in a temporary folder. Memory is the anonymous memory of a fresh process that opens the shards
and reads batches from all over them; pages of the mapped shards are the kernel's to drop and are not counted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sm_diffusion.data.corpus import CorpusFiles, FileCorpus
from sm_diffusion.data.filters import RecordFilter
from sm_diffusion.data.hub import LocalFolder
from sm_diffusion.data.loader import LoaderSettings
from sm_diffusion.data.prepare import TokenCache
from sm_diffusion.data.sharded import ShardPreparer
from sm_diffusion.data.storage import table_loader
from sm_diffusion.data.tokenizer import ByteTokenizer, TextTokenizer
from sm_diffusion.data.tokenizer_spec import TokenizerSpec, build_tokenizer

LENGTH = 1024
BATCH = 64
PEAK_FLOPS = 989e12  # of an H100 SXM, bfloat16, dense
MFU = 0.5  # better than this code reaches: a bound on what the GPU can consume
READ_MEMORY = """
import json, sys
from pathlib import Path
from sm_diffusion.data.loader import LoaderSettings
from sm_diffusion.data.shards import open_shards, read_manifest
from sm_diffusion.data.storage import table_loader

def anonymous_kb():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1])
    return 0

folder = Path(sys.argv[1])
before = anonymous_kb()
cache = open_shards(folder, read_manifest(folder))
settings = LoaderSettings(global_batch_sequences=64, micro_batch_sequences=64, eval_batch_sequences=64, num_workers=0,
                          seed=1)
for number, batch in enumerate(table_loader(cache, settings, rank=0, world_size=1)):
    if number == 100:
        break
print(json.dumps([before, anonymous_kb(), len(cache.train)]))
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--megabytes", type=int, default=10, help="of text to prepare (default %(default)s)")
    parser.add_argument("--large-megabytes", type=int, default=100, help="of text for the memory of the loader")
    parser.add_argument("--tokenizer", default="", help="folder or hub name; default: a BPE of 8,192 trained here")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")


def run_cli(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="smd-bench-data-") as folder:
        found = measure(Path(folder), megabytes=args.megabytes, large=args.large_megabytes, tokenizer=args.tokenizer)
    print("\n".join(report(found)))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
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
    loader = table_loader(cache, settings, rank=0, world_size=1)
    tokens, start = 0, time.process_time()
    while time.process_time() - start < 1.0:
        for batch in loader:
            tokens += batch.ids_BL.numel()
    found["loaded_tokens_per_second_per_core"] = tokens / (time.process_time() - start)
    for name, size in (("small", megabytes), ("large", large)):
        corpus = small if name == "small" else _corpus(folder / "large", size)
        path, _, _ = _prepare(corpus, ByteTokenizer(), folder / f"bytes-{name}")
        before, after, sequences = _read_memory(path)
        found[f"memory_{name}"] = {"megabytes": size, "sequences": sequences, "before_mb": before, "after_mb": after}
    found["consumed_flops_per_token"] = flops_per_token()
    found["consumed_tokens_per_second"] = PEAK_FLOPS * MFU / found["consumed_flops_per_token"]
    return found


def report(found: dict[str, Any]) -> list[str]:
    """The figures with the arithmetic."""
    prepared, loaded = found["prepared_tokens_per_second_per_core"], found["loaded_tokens_per_second_per_core"]
    eaten = found["consumed_tokens_per_second"]
    lines = [
        f"prepare  {prepared:,.0f} tokens/s on one core ({found['tokenizer']}, {found['bytes_per_token']:.2f} bytes a "
        f"token): 9.0e9 tokens of OpenWebText take {9e9 / prepared / 3600 / 32:.1f} hours on 32 such cores",
        f"loader   {loaded:,.0f} tokens/s on one core, no worker",
        f"model    169M DiT, soft-masked, p_sm 0.8: {found['consumed_flops_per_token']:.3g} FLOP a trained token; an "
        f"H100 at {PEAK_FLOPS / 1e12:.0f} TFLOP/s x {MFU:.0%} MFU = {eaten:,.0f} tokens/s at most",
        f"         the loader gives {loaded / eaten:.1f} times that from one core; streaming needs "
        f"{eaten / prepared:.1f} cores a GPU to tokenise as fast",
    ]
    for name in ("small", "large"):
        memory = found[f"memory_{name}"]
        lines.append(
            f"memory   {memory['megabytes']:,} MB of text, {memory['sequences']:,} sequences: "
            f"{memory['after_mb'] - memory['before_mb']:.1f} MB on top of {memory['before_mb']:.1f}"
        )
    return lines


def flops_per_token() -> float:
    """FLOPs of one trained token: 169M DiT, soft-masked, 1,024 tokens, as `smd plan` counts them."""
    from sm_diffusion.config.store import compose_config
    from sm_diffusion.tools.plan import make_plan

    config = compose_config("train", ["model=dit_169m", "variant=soft_masked", "data=openwebtext"])
    return float(make_plan(config, vocab=50_258, on_gpu=True, num_devices=1).flops.training)


def _corpus(folder: Path, megabytes: int) -> FileCorpus:
    folder.mkdir()
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for text in _texts(megabytes * 1_000_000):
            file.write(json.dumps({"text": text}) + "\n")
    return FileCorpus(
        name="bench",
        location=LocalFolder(str(folder)),
        files=CorpusFiles(train_files=("*.jsonl",), validation_fraction=0.02, slice_bytes=25_000_000),
        record_filter=RecordFilter(text_field="text"),
    )


def _texts(num_bytes: int) -> Iterator[str]:
    from sm_diffusion.data.python_corpus import standard_library

    documents = [text for _, text in standard_library()]
    number = 0
    while num_bytes > 0:
        text = f"# {number}\n{documents[number % len(documents)]}"
        num_bytes -= len(text)
        number += 1
        yield text


def _prepare(corpus: FileCorpus, tokenizer: TextTokenizer, cache_dir: Path) -> tuple[Path, float, TokenCache]:
    """Folder, processor seconds of the only process and thread, and the tables."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    preparer = ShardPreparer(source=corpus, tokenizer=tokenizer, length=LENGTH, cache_dir=cache_dir)
    start = time.process_time()
    cache = preparer.prepare(workers=1)
    return preparer.folder, time.process_time() - start, cache


def _read_memory(folder: Path) -> tuple[float, float, int]:
    """(MB before, MB after reading, sequences)."""
    done = subprocess.run([sys.executable, "-c", READ_MEMORY, str(folder)], capture_output=True, text=True, check=True)
    before, after, sequences = json.loads(done.stdout)
    return before / 1e3, after / 1e3, sequences
