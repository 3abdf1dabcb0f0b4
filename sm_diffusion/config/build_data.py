"""From data settings to sources and the datamodule."""

from __future__ import annotations

from sm_diffusion.config import schema
from sm_diffusion.data.datamodule import TokenDataModule
from sm_diffusion.data.loader import LoaderSettings
from sm_diffusion.data.python_corpus import PythonCorpus
from sm_diffusion.data.sources import TextFiles, TokenSource
from sm_diffusion.data.tokenizer_spec import TokenizerSpec
from sm_diffusion.types import UserError


def micro_batch_sequences(data: schema.DataConfig, world_size: int) -> int:
    """Sequences a forward pass on each rank."""
    return data.micro_batch_sequences or data.global_batch_sequences // world_size


def build_source(data: schema.DataConfig) -> TokenSource:
    match data:
        case schema.PythonCorpusConfig():
            return PythonCorpus(kind=data.kind, validation_fraction=data.validation_fraction)
        case schema.TextFilesConfig():
            return TextFiles(
                paths=data.paths,
                text_field=data.text_field,
                split_blank_lines=data.split_on_blank_lines,
                validation_fraction=data.validation_fraction,
                validation_paths=data.validation_paths or None,
            )
        case _:
            raise UserError(f"data={data.name}: no source for {type(data).__name__}; choose python_* or text_files")


def build_datamodule(data: schema.DataConfig, *, seed: int, world_size: int) -> TokenDataModule:
    tokenizer = data.tokenizer
    return TokenDataModule(
        source=build_source(data),
        tokenizer=TokenizerSpec(
            kind=tokenizer.kind, vocab_size=tokenizer.vocab_size, path=tokenizer.path or None, mask=tokenizer.mask
        ),
        length=data.length,
        loader=LoaderSettings(
            global_batch_sequences=data.global_batch_sequences,
            micro_batch_sequences=micro_batch_sequences(data, world_size),
            eval_batch_sequences=data.eval_batch_sequences,
            num_workers=data.num_workers,
            seed=seed,
            max_validation_sequences=data.max_validation_sequences,
        ),
        cache_dir=data.cache_dir,
    )
