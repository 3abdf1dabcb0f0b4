"""The page of `smd view`: whole, self-contained, and safe whatever the texts hold."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from sm_diffusion.app.commands.recording import FORMAT
from sm_diffusion.cli import main as cli
from sm_diffusion.reproduction.report.trajectory_page import build_page, read_recording
from sm_diffusion.types import UserError


def recording(variant: str = "soft_masked") -> dict[str, Any]:
    soft = {"1": {"lambda": 0.5, "blend": [[0, 1.0]]}}
    frame = {"step": 0, "time": 1.0, "ids": [0, 1], "state": [1, 3], "soft": soft}
    return {
        "format": FORMAT, "checkpoint": "x.ckpt", "step": 3, "variant": variant, "sampler": {"name": "ancestral"},
        "seed": 1, "omegas": {"omega_s": 0.5, "omega_a": 1.0, "omega_b": -1.0}, "mask_id": 1,
        "states": ["padding", "given", "masked", "soft", "drawn", "kept", "remasked"],
        "tokens": {"0": "</script><script>alert(1)</script>", "1": "_"},
        "rows": [{"text": "a", "nfe": 1, "frames": [frame]}],
    }


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.data: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.data.append(data)


def test_page_parses_and_names_nothing_outside() -> None:
    page = build_page([recording("mdlm"), recording()])
    parser = Tags()
    parser.feed(page)
    assert parser.open == []
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|XMLHttpRequest|WebSocket", page)
    for tag, attributes in parser.seen:
        assert tag not in ("link", "img", "iframe", "object", "base"), tag
        assert not {"src", "href", "action", "srcset"} & set(attributes), (tag, attributes)
    assert sum(tag == "script" for tag, _ in parser.seen) == 2  # the data, the program: none out of a token's text
    assert json.loads(parser.data[0])[1] == recording()


def test_other_files_are_refused_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    for content in ("{}", "[]", '{"format": "smd-trajectory-1"}', "nonsense"):
        path.write_text(content)
        with pytest.raises(UserError, match=r"run\.json"):
            read_recording(path)
    assert cli.main(["view", str(tmp_path / "gone.json")]) == 2
    assert cli.main(["view", "a", "b", "c"]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


def test_written_beside_the_recording(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(recording()))
    assert cli.main(["view", str(path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "run.html")
    assert (tmp_path / "run.html").read_text().startswith("<!DOCTYPE html>")
