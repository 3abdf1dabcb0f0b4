"""The rooms of the package: imports point one way, no circle, no room too wide, no file or function too long.

What is checked is what CONTRIBUTING says under "Architecture". Imports inside functions count like those at the top.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sm_diffusion"
FILES = sorted(PACKAGE.rglob("*.py"))
NAMES = [str(path.relative_to(PACKAGE)) for path in FILES]

# Floors, from the ground up; a file may import from its own floor's package and from any floor below it.
# Packages on one floor do not know one another.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("__init__", "types", "paths", "interrupts"),
    ("registry", "files"),
    ("diffusion",),
    ("sampling", "denoisers"),
    ("data",),
    ("evaluation",),
    ("training",),
    ("config",),
    ("app",),
    ("planning", "reproduction"),
    ("cli",),
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}
MAX_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS, MAX_FILES = 400, 60, 8, 15

# Climbs, circles and lengths that stood here when the rooms were laid out; only ever shortened.
KNOWN_CLIMBS: frozenset[str] = frozenset()
KNOWN_LONG: frozenset[str] = frozenset()
KNOWN_CIRCLES: frozenset[str] = frozenset()
KNOWN_WIDE = frozenset({"app"})

MAY_IMPORT_LIGHTNING = ("training/", "app/", "data/datamodule.py", "data/chat/datamodule.py")
MAY_IMPORT_HYDRA = ("config/", "app/train.py")


def imports(path: Path, *, top_level_only: bool = False) -> Iterator[str]:
    """Modules a file names, `from package import module` as `package.module` where that is a file."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if _file_of(inner) is not None else node.module


def _file_of(module: str) -> Path | None:
    if module.split(".")[0] != "sm_diffusion":
        return None
    path = ROOT / module.replace(".", "/")
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def room(path: Path) -> str:
    return str(path.relative_to(PACKAGE)).split("/")[0].removesuffix(".py")


def climbs() -> list[str]:
    """Imports that do not point downwards."""
    found = []
    for path, name in zip(FILES, NAMES, strict=True):
        if name == "__init__.py":  # the public face looks into the house
            continue
        for module in imports(path):
            target = _file_of(module)
            if target is None or target == PACKAGE / "__init__.py":
                continue
            own, other = room(path), room(target)
            if own != other and FLOOR_OF[other] >= FLOOR_OF[own]:
                found.append(f"{name} -> {module}")
    return sorted(set(found))


def circles() -> list[str]:
    """Groups of files that import one another, directly or through others (Tarjan's components)."""
    graph: dict[Path, set[Path]] = {}
    for path in FILES:
        targets = (_file_of(module) for module in imports(path))
        graph[path] = {target for target in targets if target is not None and target != path}
    if PACKAGE / "__init__.py" in graph:
        graph[PACKAGE / "__init__.py"] = set()
    index: dict[Path, int] = {}
    low: dict[Path, int] = {}
    stack: list[Path] = []
    found: list[str] = []

    def visit(node: Path) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = []
            while (last := stack.pop()) != node:
                group.append(last)
            if group:
                found.append(", ".join(sorted(str(path.relative_to(PACKAGE)) for path in [*group, node])))

    for path in FILES:
        if path not in index:
            visit(path)
    return found


def test_imports_point_downwards() -> None:
    assert sorted(set(climbs()) - KNOWN_CLIMBS) == []


def test_no_two_files_import_each_other() -> None:
    assert sorted(set(circles()) - KNOWN_CIRCLES) == []


def test_no_folder_is_too_wide() -> None:
    widths: dict[str, int] = {}
    for path in FILES:
        folder = str(path.parent.relative_to(PACKAGE))
        widths[folder] = widths.get(folder, 0) + 1
    assert {name: width for name, width in widths.items() if width > MAX_FILES and name not in KNOWN_WIDE} == {}


def test_every_folder_says_what_belongs_in_it() -> None:
    for path in FILES:
        text = ast.get_docstring(ast.parse((path.parent / "__init__.py").read_text()))
        assert text, f"{path.parent.relative_to(PACKAGE)}/__init__.py says nothing"


@pytest.mark.parametrize("name", NAMES)
def test_libraries_stay_in_their_rooms(name: str) -> None:
    for module in imports(PACKAGE / name):
        library = module.split(".")[0]
        if library in ("lightning", "pytorch_lightning"):
            assert name.startswith(MAY_IMPORT_LIGHTNING), f"{name} imports {module}"
        if library in ("hydra", "omegaconf"):
            assert name.startswith(MAY_IMPORT_HYDRA), f"{name} imports {module}"


@pytest.mark.parametrize("name", NAMES)
def test_sizes(name: str) -> None:
    source = (PACKAGE / name).read_text()
    assert len(source.splitlines()) <= MAX_LINES, f"a file has at most {MAX_LINES} lines"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            if f"{name}:{node.name}" in KNOWN_LONG:
                continue
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION_LINES, f"{node.name} has {length} lines"
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            own = [argument for argument in arguments if argument.arg not in ("self", "cls")]
            assert len(own) <= MAX_PARAMETERS, f"{node.name} has {len(own)} parameters"


def test_optional_packages_are_imported_where_they_are_used() -> None:
    optional = {"lm_eval", "mauve", "peft", "deepspeed", "wandb", "bitsandbytes", "flash_attn", "gguf", "matplotlib"}
    for path in FILES:
        for module in imports(path, top_level_only=True):
            assert module.split(".")[0] not in optional, f"{path.name} imports {module} at the top"


def test_entry_points_are_short() -> None:
    for name in ("train.py", "eval.py"):
        assert len((ROOT / name).read_text().splitlines()) <= 60
