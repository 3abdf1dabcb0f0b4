"""What eval.py runs: load a checkpoint, run an evaluator, write `results.json`."""

from __future__ import annotations

from typing import Any

from sm_diffusion.app.console import is_first_rank, quiet_libraries, say
from sm_diffusion.app.evaluation import Evaluation
from sm_diffusion.app.model import Model
from sm_diffusion.app.validate import evaluator_name, validate_eval
from sm_diffusion.config.nodes import plain
from sm_diffusion.config.root import EvalConfig
from sm_diffusion.evaluation.base import EvalResult
from sm_diffusion.evaluation.results import environment
from sm_diffusion.files import write_json
from sm_diffusion.training.run_folder import RunFolder


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Load a checkpoint, run the evaluator, write `results.json`."""
    validate_eval(config)
    quiet_libraries()
    context = Evaluation(config)
    result = config.evaluator.build(context).evaluate(context)
    return _write(config, result, context.model)


def _write(config: EvalConfig, result: EvalResult, model: Model) -> dict[str, Any]:
    """`results.json`; evaluators without a table of their own have their metrics printed."""
    results = {
        "name": evaluator_name(config),
        "metrics": result.metrics,
        "protocol": result.protocol,
        **({"scores": result.scores} if result.scores else {}),
        "checkpoint": model.source,
        "checkpoint_sha256": model.sha256,
        "checkpoint_step": model.step,
        "weights": model.weights,
        "seed": config.seed,
        "config": plain(config),
        **environment(),
    }
    if is_first_rank():
        path = RunFolder(config.output_dir).results
        write_json(path, results)
        for name, value in [] if result.scores else result.metrics.items():
            print(f"{name:<34} {value:.6g}")
        say(f"written to {path}")
    return results
