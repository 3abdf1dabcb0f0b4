"""The tests mirror the package: a folder for a folder, a file for a file, and what they share is in tests/helpers."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE, TESTS = ROOT / "sm_diffusion", ROOT / "tests"
UNIT = TESTS / "unit"
MAX_LINES = 400

# Modules without a test file of their name, each reached through the tests of another; only ever shortened.
KNOWN_UNNAMED = {
    ".": "paths types",
    "app": (
        "build compose console evaluate model model_card open_model "
        "open_tokenizer publish train trainer validate validate_strategy"
    ),
    "app/commands": "convert prepare recording sample talk",
    "cli": "bench lm_eval plan prepare sample view",
    "cli/experiments": "plot report run search sweep table",
    "config": "compose errors root search_space",
    "data": "loader settings",
    "data/chat": "datamodule python_chat settings sources",
    "data/corpora": "file_corpus records",
    "data/stores": "base cache shard_format shard_writer",
    "data/tokenizers": "sizes",
    "denoisers": "attention embedding",
    "denoisers/adapters": "settings state",
    "denoisers/checkpoints": "weights",
    "denoisers/dit": "layers model settings",
    "denoisers/pretrained": "dream export kv_store llada settings",
    "diffusion": "contracts masking objective omegas parameterization predictor schedule soft_mask",
    "diffusion/readouts": "base draw scratch",
    "evaluation": "base perplexity zero_shot",
    "evaluation/benchmarks": "answers checks evaluator extract_first released_math table tasks",
    "evaluation/execution": "judge rpc sandbox supervisor",
    "evaluation/generation": "evaluator samples",
    "evaluation/harness": "decode opened settings text",
    "planning": "arithmetic memory",
    "planning/benchmarks": "floor measure packing train",
    "reproduction": "code_version collect collected expected run_logs shipped",
    "reproduction/report": "figures formats page texts",
    "reproduction/search": "records",
    "sampling": "canvas feedback noise settings trajectory",
    "sampling/orders": "ancestral base blockwise confidence remdm",
    "sampling/reference": "plain published",
    "training": "compiling loggers module trainer_settings variant_settings variants",
    "training/callbacks": (
        "averaging compute_budget final_checkpoint nonfinite preemption profiling progress settings "
        "training_log validation"
    ),
    "training/checkpoints": "adapter_folder gather",
    "training/strategies": "base fsdp replicated saving sharding zero zero_shards",
    "training/watchdog": "heartbeat",
}


def modules() -> set[str]:
    """Files of the package below it, without suffix: `diffusion/schedule`."""
    files = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
    return {str(path.with_suffix("")) for path in files}


def with_a_test_of_their_name() -> set[str]:
    """The modules that a test file in the folder that mirrors theirs has the name of."""
    files = (path.relative_to(UNIT) for path in UNIT.rglob("test_*.py"))
    return {str(path.with_name(path.stem.removeprefix("test_"))) for path in files} & modules()


def test_every_folder_of_tests_is_one_of_the_package() -> None:
    folders = {str(path.parent.relative_to(UNIT)) for path in UNIT.rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (PACKAGE / folder).is_dir()] == []
    assert [folder for folder in sorted(folders) if not (UNIT / folder / "__init__.py").is_file()] == []


def test_modules_without_a_test_of_their_name_become_fewer() -> None:
    known = {str(Path(folder, name)) for folder, names in KNOWN_UNNAMED.items() for name in names.split()}
    unnamed = modules() - with_a_test_of_their_name()
    print(f"{len(unnamed)} of {len(modules())} modules have no test file of their name:", *sorted(unnamed), sep="\n")
    assert sorted(unnamed - known) == [], "give each a file in the folder that mirrors its own"
    assert sorted(known - unnamed) == [], "these have one now, or are gone: take them from the list"


def test_no_test_imports_another() -> None:
    found = []
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                if name.split(".")[0] == "tests" and name.split(".")[-1].startswith("test_"):
                    found.append(f"{path.relative_to(ROOT)} imports {name}")
    assert found == [], "what several tests share belongs in tests/helpers"


def test_test_files_are_not_too_long() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in TESTS.rglob("*.py")}
    assert [str(path.relative_to(ROOT)) for path, length in lengths.items() if length > MAX_LINES] == []
