"""Settings of corpora and tokenizers."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING


@dataclass
class TokenizerConfig:
    kind: str = MISSING  # char (a-z and space) | byte | bpe (trained on the corpus) | hub (folder or hub name)
    vocab_size: int = 4096  # bpe only; mask included, >= 258
    path: str = ""  # hub only
    mask: str = "auto"  # hub only: token (must have one) | auto (one is added where there is none)


@dataclass
class DataConfig:
    """Settings every corpus shares. Sizes are counted in sequences of `length` tokens."""

    name: str = MISSING
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    length: int = MISSING  # tokens a sequence
    global_batch_sequences: int = MISSING  # sequences an optimizer step, over all ranks and accumulation steps
    micro_batch_sequences: int | None = None  # sequences a forward pass and rank; null: global batch / ranks
    eval_batch_sequences: int = 64
    max_validation_sequences: int | None = None  # null: all
    num_workers: int = 0  # loader processes a rank
    cache_dir: str = "cache"  # tokenised corpora


@dataclass
class PythonCorpusConfig(DataConfig):
    """The running interpreter's standard library: its code, or the English in its docstrings and manual."""

    kind: str = MISSING  # code | text
    validation_fraction: float = 0.05  # share of documents, in (0, 1)


@dataclass
class TextFilesConfig(DataConfig):
    """A folder, file or glob of .txt, .jsonl, .parquet or .py files."""

    paths: list[str] = MISSING
    validation_paths: list[str] = field(default_factory=list)  # empty: a share of the documents of `paths`
    validation_fraction: float = 0.05
    text_field: str = "text"  # field or column of .jsonl and .parquet
    split_on_blank_lines: bool = False  # a .txt file is one document, or one a paragraph
