"""Checks that what the documents point at exists: links, their anchors, and file names in backticks.

    python -m tests.helpers.links [ROOT]
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sm_diffusion.paths import ROOT

DOCUMENTS = ("*.md", "docs/**/*.md", "experiments/**/*.md", "benchmarks/**/*.md", "tests/**/*.md")
EXTERNAL = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
LINK = re.compile(r"!?\[[^\]]*\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
CODE = re.compile(r"`([^`\n]+)`")
FENCE = re.compile(r"^(```|~~~).*?^\1\s*$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#{1,6}\s+(.*?)\s*#*\s*$", re.MULTILINE)
# A plain path: no spaces, placeholders, globs, assignments or calls.
PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*/?")
TOP_FILE = re.compile(r"[A-Z]+\.md|Makefile|LICENSE|constraints\.txt|pyproject\.toml|train\.py|eval\.py")
WRITTEN = {"runs", "cache", "outputs", "multirun", "wandb"}


def documents(root: Path) -> list[Path]:
    """The Markdown files that are checked."""
    return sorted({path for pattern in DOCUMENTS for path in root.glob(pattern)})


def slug(heading: str) -> str:
    """The anchor that Markdown hosts make of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").lower()
    return re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")


def anchors(path: Path) -> set[str]:
    """All anchors of a document; a repeated heading's second one ends in -1."""
    seen: dict[str, int] = {}
    found = set()
    for heading in HEADING.findall(FENCE.sub("", path.read_text())):
        name = slug(heading)
        count = seen.get(name, 0)
        seen[name] = count + 1
        found.add(f"{name}-{count}" if count else name)
    return found


def broken_links(path: Path) -> Iterator[str]:
    """Relative links of a document to nothing."""
    for target in LINK.findall(CODE.sub("", FENCE.sub("", path.read_text()))):
        if EXTERNAL.match(target):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        if not file.exists():
            yield f"link to {name}: no such file"
        elif anchor and file.suffix == ".md" and anchor not in anchors(file):
            yield f"link to {target}: no such heading"


def broken_names(path: Path, root: Path) -> Iterator[str]:
    """File names in backticks that exist neither below the root nor beside the document.

    Taken for file names: paths whose first part is a folder of the repository, and names that look like a file of its
    top folder. What runs write (`runs/...`, `results.json`) is not looked for.
    """
    folders = {entry.name for entry in root.iterdir() if entry.is_dir()} - WRITTEN
    for text in CODE.findall(FENCE.sub("", path.read_text())):
        if not PATH.fullmatch(text):
            continue
        first, slash, _ = text.partition("/")
        looked_for = first in folders if slash else TOP_FILE.fullmatch(text) is not None
        if looked_for and not (root / text).exists() and not (path.parent / text).exists():
            yield f"`{text}`: no such file"


def check(root: Path) -> list[str]:
    """One line for each problem, with the document it is in."""
    return [
        f"{path.relative_to(root)}: {problem}"
        for path in documents(root)
        for problem in (*broken_links(path), *broken_names(path, root))
    ]


def main(arguments: Sequence[str]) -> int:
    """Print the problems; status 1 when there are any."""
    root = Path(arguments[0]) if arguments else ROOT
    problems = check(root)
    print("\n".join([*problems, f"{len(documents(root))} documents, {len(problems)} broken references"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
