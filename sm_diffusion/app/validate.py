"""Cross-checks of a configuration, before any heavy work. ALL problems are reported at once.

Each problem is one line: key=value: what is wrong; what to set instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from sm_diffusion.app.validate_hf import hf_problems
from sm_diffusion.app.validate_strategy import strategy_problems
from sm_diffusion.config.nodes import plain
from sm_diffusion.config.root import EvalConfig, TrainConfig
from sm_diffusion.data.settings import DataSettings
from sm_diffusion.denoisers.pretrained.settings import HFSettings
from sm_diffusion.evaluation.base import CheckedInEvaluation
from sm_diffusion.files import read_object
from sm_diffusion.registry import problems_of
from sm_diffusion.training.checkpoints.store import exists
from sm_diffusion.training.run_folder import RESULTS, RunFolder, name_problem
from sm_diffusion.types import UserError

Problems = Iterator[str]


def validate_train(config: TrainConfig) -> None:
    """Raise UserError listing every problem of a training configuration."""
    _report(
        [
            *problems_of(config.model),
            *problems_of(config.soft_mask),
            *config.variant.problems_in_run(config.trainer.max_steps),
            *problems_of(config.objective),
            *problems_of(config.data),
            *hf_problems(config),
            *problems_of(config.optim),
            *problems_of(config.trainer),
            *strategy_problems(config),
            *_batches(config),
            *problems_of(config.callbacks),
            *problems_of(config.logger),
            *_run_folder(config),
        ]
    )


def validate_eval(config: EvalConfig) -> None:
    """Raise UserError listing every problem of an evaluation configuration."""
    problems = [*_choice("weights", config.weights, ("ema", "raw")), *_writable("output_dir", config.output_dir)]
    problems += _other_results(config)
    problems += _positive("batch_sequences", config.batch_sequences)
    problems += _positive("devices", config.devices)
    if not Path(config.checkpoint).exists() and not _is_hub_id(config):
        problems.append(f"checkpoint={config.checkpoint}: no such file; give one of a run's checkpoints folder")
    problems += [*config.sampler.problems(), *problems_of(config.evaluator)]
    if isinstance(config.evaluator, CheckedInEvaluation):
        problems += config.evaluator.problems_in_evaluation(config.sampler, config.devices)
    if config.data is not None:
        problems += problems_of(config.data)
    _report(problems)


def evaluator_name(config: EvalConfig) -> str:
    """What the evaluator is called: as it is registered, or the benchmark."""
    return str(plain(config.evaluator, "evaluator")["name"])


def _is_hub_id(config: EvalConfig) -> bool:
    """A published model that can be had by name: pinned here, or with a revision."""
    from sm_diffusion.denoisers.pretrained.loading import PINNED  # imports transformers

    revision = config.model.revision if isinstance(config.model, HFSettings) else None
    return config.checkpoint in PINNED or (revision is not None and config.checkpoint.count("/") == 1)


def validate_data(data: DataSettings) -> None:
    """Raise UserError listing every problem of a corpus's settings."""
    _report(problems_of(data))


def validate_vocabulary(config: TrainConfig, vocab_size: int) -> None:
    """What can only be checked once the tokenizer is known."""
    if config.variant.feeds_back:
        _report([*config.soft_mask.problems_with_vocabulary(vocab_size)])


def _report(problems: list[str]) -> None:
    if len(problems) == 1:
        raise UserError(problems[0])
    if problems:
        raise UserError(f"{len(problems)} problems in the configuration:\n" + "\n".join(f"  {p}" for p in problems))


def _choice(key: str, value: str, choices: tuple[str, ...]) -> Problems:
    if value not in choices:
        yield f"{key}={value}: unknown; choose one of {', '.join(choices)}"


def _positive(key: str, value: float | None) -> Problems:
    if value is not None and not value > 0:
        yield f"{key}={value}: must be positive"


def _inside(key: str, value: float, low: float, high: float, *, hint: str = "") -> Problems:
    if not low <= value <= high:
        yield f"{key}={value}: must lie in [{low:g}, {high:g}]{hint}"


def _batches(config: TrainConfig) -> Problems:
    data, world = config.data, config.trainer.devices * config.trainer.num_nodes
    total = data.global_batch_sequences
    if total <= 0 or world <= 0:
        return
    if total % world:
        yield (
            f"data.global_batch_sequences={total}: not divisible by the {world} processes; "
            f"set it to {max(1, total // world) * world} or {(total // world + 1) * world}"
        )
    elif data.micro_batch_sequences is not None and (total // world) % data.micro_batch_sequences:
        good = [size for size in range(1, total // world + 1) if (total // world) % size == 0]
        yield (
            f"data.micro_batch_sequences={data.micro_batch_sequences}: does not divide the {total // world} sequences "
            f"of each process (data.global_batch_sequences={total}); choose one of {', '.join(map(str, good[-8:]))}"
        )


def _run_folder(config: TrainConfig) -> Problems:
    if problem := name_problem(config.name):
        yield problem
        return
    yield from _writable("output_dir", config.output_dir)
    yield from _choice("init_weights", config.init_weights, ("raw", "ema"))
    run = RunFolder(config.output_dir)
    if config.init_from is not None and not Path(config.init_from).exists():
        yield f"init_from={config.init_from}: no such file; train it first or give another checkpoint"
    if config.ckpt_path == "last":
        if not exists(run.last):
            yield f"ckpt_path=last: {run.checkpoints} holds no {run.last.name}; leave ckpt_path out to start a new run"
    elif config.ckpt_path == "auto":
        if config.overwrite:
            yield "overwrite=true: would delete what ckpt_path=auto continues; set one of them"
    elif config.ckpt_path is not None:
        if not Path(config.ckpt_path).exists():
            yield f"ckpt_path={config.ckpt_path}: no such file"
    elif not config.overwrite and run.checkpoints.is_dir() and any(run.checkpoints.glob("*.ckpt")):
        yield (
            f"output_dir={config.output_dir}: holds an earlier run; set ckpt_path=last to continue it, "
            "name=... for a new one, or overwrite=true to delete it"
        )


def _other_results(config: EvalConfig) -> Problems:
    """Results of another checkpoint or evaluator are not replaced unasked. Those of the same are: with other settings
    (seed, sampler, weights) too, and of a checkpoint that was trained again."""
    path = Path(config.output_dir) / RESULTS
    if config.overwrite or not path.exists():
        return
    try:
        found = read_object(path)
    except UserError:
        yield f"output_dir={config.output_dir}: {path} is no results of an evaluation; choose another output_dir"
        return
    held = found.get("config")
    settings = held if isinstance(held, dict) else {}
    for key, then, now in (
        ("checkpoint", settings.get("checkpoint"), config.checkpoint),
        ("evaluator", found.get("name"), evaluator_name(config)),
    ):
        if then != now:
            yield (
                f"output_dir={config.output_dir}: holds the results of {key}={then}; choose another output_dir, or set "
                "overwrite=true to replace them"
            )
            return


def _writable(key: str, value: str) -> Problems:
    if not value.strip():
        yield f"{key}=: empty; name a folder"
        return
    folder = Path(value).expanduser().absolute()
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        yield f"{key}={value}: {folder} is a file, not a folder; choose another {key}"
    elif not os.access(folder, os.W_OK):
        yield f"{key}={value}: {folder} is not writable; choose another {key}"
