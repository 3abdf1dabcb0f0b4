"""A corpus downloaded, tokenised, packed and checked before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from sm_diffusion.app.validate import validate_data
from sm_diffusion.config.compose import compose_config
from sm_diffusion.config.root import TrainConfig
from sm_diffusion.data.chat.cache import ChatMeta, ChatSplit
from sm_diffusion.data.stores.shard_format import read_manifest
from sm_diffusion.data.stores.shard_preparer import ShardPreparer, cores
from sm_diffusion.types import UserError


def prepare(
    overrides: Sequence[str], *, dry_run: bool = False, verify: bool = False, workers: int | None = None
) -> None:
    """Prepare the corpus of a training configuration and print what it holds.

    Args:
        overrides: As for train.py.
        dry_run: Write no shard, say how much disk, time and tokens.
        verify: Check every shard, and build damaged ones again.
        workers: Processes; None: all cores.

    Raises:
        UserError: The configuration is wrong, or the corpus is kept in one small file and has no shards.
    """
    config: TrainConfig = compose_config("train", overrides)
    validate_data(config.data)
    preparers = config.data.preparation(download=not dry_run)
    if not preparers:
        if dry_run or verify:
            raise UserError(f"data={config.data.name}: kept in one small file: --dry-run and --verify are for shards")
        _whole(config)
    for name, preparer in preparers.items():
        if dry_run:
            print(_dry_run(name, preparer, workers or cores()))
        elif verify:
            repaired = preparer.verify(workers=workers)
            print(
                f"{name}: {preparer.folder}: {len(repaired)} damaged shards, built again"
                if repaired
                else f"{name}: {preparer.folder}: every shard has its checksum"
            )
        else:
            preparer.prepare(workers=workers)
            print(_summary(name, preparer.folder))


def _whole(config: TrainConfig) -> None:
    data = config.data.datamodule(seed=config.seed, world_size=1)
    data.prepare()
    for split, counts in data.meta.splits.items():
        refused = f"; refused: {_listed(counts.refused)}" if isinstance(counts, ChatSplit) else ""
        print(f"{split:<10} {counts.sequences:,} sequences, {counts.tokens:,} tokens{refused}")
    if isinstance(data.meta, ChatMeta):
        print(f"refused before the split: {_listed(data.meta.refused)}")


def _dry_run(name: str, preparer: ShardPreparer, workers: int) -> str:
    estimate = preparer.estimate()
    return (
        f"{name}: about {estimate.tokens:,} tokens in {estimate.shards} shards, {estimate.shards_left} of them to "
        f"write: {estimate.disk_bytes / 1e6:,.1f} MB in {preparer.folder}, about "
        f"{estimate.core_seconds / workers / 60:.1f} minutes on {workers} cores, after the download"
    )


def _listed(refused: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {number:,}" for reason, number in refused.items()) or "none"


def _summary(name: str, folder: Path) -> str:
    manifest = read_manifest(folder)
    assert manifest is not None
    lines = [f"{name}: {len(manifest.shards)} shards in {folder}"]
    for split, counts in manifest.totals.items():
        refused = _listed(counts["refused"])
        lines.append(
            f"  {split:<10} {counts['documents']:,} documents, {counts['tokens']:,} tokens, "
            f"{counts['sequences']:,} sequences, {counts['file_bytes'] / 1e6:,.1f} MB; refused: {refused}"
        )
    return "\n".join(lines)
