"""The layers of the package import downwards only, and no file or function outgrows its reader."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sm_diffusion"
FILES = sorted(PACKAGE.rglob("*.py"))

# A package may import itself and what stands to its right; tools and config see everything.
ALLOWED = {
    "types": set(),
    "diffusion": {"types"},
    "denoisers": {"types", "diffusion"},
    "sampling": {"types", "diffusion"},
    "data": {"types"},
    "evaluation": {"types", "diffusion", "denoisers", "sampling", "data"},
    "training": {"types", "diffusion", "denoisers", "sampling", "data", "evaluation"},
    "config": {"types", "diffusion", "denoisers", "sampling", "data", "evaluation", "training"},
}
MAY_IMPORT_LIGHTNING = ("training/", "config/", "data/datamodule.py")
MAY_IMPORT_HYDRA = ("config/",)


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path: Path) -> None:
    name = str(path.relative_to(PACKAGE))
    layer = name.split("/")[0].removesuffix(".py")
    for module in imports(path, top_level_only=True):
        root, _, rest = module.partition(".")
        if root == "sm_diffusion" and rest and layer in ALLOWED:
            target = rest.split(".")[0]
            assert target == layer or target in ALLOWED[layer], f"{name} imports {module}"
        if root in ("lightning", "pytorch_lightning"):
            assert name.startswith(MAY_IMPORT_LIGHTNING), f"{name} imports {module}"
        if root in ("hydra", "omegaconf"):
            assert name.startswith(MAY_IMPORT_HYDRA), f"{name} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sizes(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= 300, "a file has at most 300 lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 75, f"{node.name} is too long"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            own = [argument for argument in arguments if argument.arg not in ("self", "cls")]
            assert len(own) <= 9, f"{node.name} has {len(own)} parameters"


def test_optional_packages_are_imported_where_they_are_used() -> None:
    optional = {"lm_eval", "mauve", "peft", "deepspeed", "wandb", "bitsandbytes", "flash_attn", "gguf", "matplotlib"}
    for path in FILES:
        for module in imports(path, top_level_only=True):
            assert module.split(".")[0] not in optional, f"{path.name} imports {module} at the top"


def test_entry_points_are_short() -> None:
    for name in ("train.py", "eval.py"):
        assert len((ROOT / name).read_text().splitlines()) <= 60
