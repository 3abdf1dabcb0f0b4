"""The checker of links: on the documents, and on a folder whose references are broken."""

from __future__ import annotations

from pathlib import Path

from sm_diffusion import paths
from tests.helpers import links


def test_links_of_the_repository() -> None:
    assert links.check(paths.ROOT) == []


def test_broken_references_are_found(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "conf").mkdir()
    (tmp_path / "train.py").write_text("")
    (tmp_path / "docs" / "page.md").write_text("# One `two`\n\n# One two\n\n[up](../README.md#first--second)\n")
    (tmp_path / "README.md").write_text(
        "# First & second\n"
        "[good](docs/page.md#one-two-1) [web](https://example.org/x.md) ![gone](docs/plot.png)\n"
        "[heading](docs/page.md#three) [self](#first--second)\n"
        "`train.py` `conf/model/tiny.yaml` `runs/x/results.json` `conf/*.yaml`\n"
        "`eval.py` `data/x` `python train.py a=b`\n"
        "```\n[not](a-link.md) `conf/no.yaml`\n# no heading\n```\n"
        "`[not](a-link.md)`\n"
    )
    assert links.check(tmp_path) == [
        "README.md: link to docs/plot.png: no such file",
        "README.md: link to docs/page.md#three: no such heading",
        "README.md: `conf/model/tiny.yaml`: no such file",
        "README.md: `eval.py`: no such file",
    ]
    assert links.main([str(tmp_path)]) == 1
