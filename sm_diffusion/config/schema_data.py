"""Settings of corpora and tokenizers."""

from __future__ import annotations

from dataclasses import dataclass, field

from sm_diffusion.registry import MISSING, register


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


@register("data", "python_corpus")
@dataclass
class PythonCorpusConfig(DataConfig):
    """The running interpreter's standard library: its code, or the English in its docstrings and manual."""

    kind: str = MISSING  # code | text
    validation_fraction: float = 0.05  # share of documents, in (0, 1)


@register("data", "text_files")
@dataclass
class TextFilesConfig(DataConfig):
    """A folder, file or glob of .txt, .jsonl, .parquet or .py files."""

    paths: list[str] = MISSING
    validation_paths: list[str] = field(default_factory=list)  # empty: a share of the documents of `paths`
    validation_fraction: float = 0.05
    text_field: str = "text"  # field or column of .jsonl and .parquet
    split_on_blank_lines: bool = False  # a .txt file is one document, or one a paragraph


@dataclass
class FilterConfig:
    """Which records of a corpus of files are kept; the others are counted, by reason, in the manifest."""

    detokenizer: str = "none"  # none | wikitext | ptb | lm1b | scientific | lambada
    min_characters: int = 1
    max_characters: int = 10_000_000
    languages: list[str] = field(default_factory=list)  # empty: any
    licenses: list[str] = field(default_factory=list)  # empty: any; all of a record's licences must be listed
    max_line_characters: int | None = None  # longest line
    max_mean_line_characters: float | None = None
    min_alphanumeric: float = 0.0  # share of letters and digits, in [0, 1)


@dataclass
class StreamConfig:
    lanes: int = 8  # divides the global batch; ranks x workers that share the reading without overlap
    shuffle_sequences: int = 2048  # a lane shuffles at a time, in memory


@register("data", "file_corpus")
@dataclass
class FileCorpusConfig(DataConfig):
    """Files in the hub's formats, from the hub or a folder; prepared into shards, or streamed."""

    repo: str = ""  # dataset repository of the hub
    revision: str = "main"  # branch, tag or commit; resolved to a commit once
    download: str = ""  # where to get it by hand, for error messages
    path: str = ""  # a folder in the hub's layout instead of the hub
    prepared: str = ""  # a finished folder of `smd prepare` instead of the text
    train_files: list[str] = MISSING  # patterns; * crosses folders
    validation_files: list[str] = field(default_factory=list)
    validation_documents: int = 0  # the last so many records
    validation_fraction: float = 0.0  # share of documents, in (0, 1); used when neither of the above is set
    text_field: str = "text"
    filter: FilterConfig = field(default_factory=FilterConfig)
    deduplicate: bool = False  # texts equal but for case, white space and punctuation
    add_eos: bool = True  # between documents
    shard_documents: int = 100_000  # parquet: rows a shard
    shard_bytes: int = 256_000_000  # other formats: bytes of the file a shard
    max_fault_share: float = 0.01  # of the records; more unusable ones are an error
    streaming: bool = False  # read the training text as it is needed
    stream: StreamConfig = field(default_factory=StreamConfig)


@register("data", "mixture")
@dataclass
class MixtureConfig(DataConfig):
    """Several corpora of files in proportions, with the tokenizer and length given here."""

    parts: dict[str, FileCorpusConfig] = MISSING
    mixture: dict[str, float] = MISSING  # weight of each part, > 0
