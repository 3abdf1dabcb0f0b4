"""The page of a reproduction: what is in it, and that it needs nothing else."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sm_diffusion.app.commands.recording import FORMAT
from sm_diffusion.cli import main as cli
from sm_diffusion.files import write_json
from sm_diffusion.reproduction import experiment as experiments
from sm_diffusion.reproduction.report import report
from tests.helpers.experiments import make_experiment, make_metrics, make_run, row_config

HEADER = "epoch,omega/a,omega/b,omega/s,step,train/loss,val/nll"


class Outline(HTMLParser):
    """Ids, and every address that the page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.images = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [given["id"]] if given.get("id") else []
        self.images += tag == "img"
        self.loads += [value for key, value in attrs if key in ("src", "href") and value]
        if tag == "iframe":
            self.feed_inner(given["srcdoc"] or "")

    def feed_inner(self, page: str) -> None:
        inner = Outline()
        inner.feed(page)
        self.loads += inner.loads


def recording(text: str) -> dict[str, object]:
    frame = {"step": 0, "time": 1.0, "ids": [1, 2], "state": [5, 5], "soft": {}}
    return {
        "format": FORMAT,
        "checkpoint": "last.ckpt",
        "variant": "mdlm",
        "sampler": {"name": "ancestral"},
        "seed": 1,
        "omegas": None,
        "states": ["padding", "given", "masked", "soft", "drawn", "kept", "remasked"],
        "mask_id": 0,
        "tokens": {"1": "a", "2": "</script>"},
        "rows": [{"text": text, "nfe": 2, "frames": [frame]}],
    }


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of a toy experiment with two rows run, one recording and one folder of judged samples."""
    root = tmp_path_factory.mktemp("report")
    experiment = experiments.load_experiment("toy", make_experiment(root / "experiments", {"title": "<Toy> & co"}))
    runs = root / "runs"
    machine = {"cpu": "Test CPU", "cores": 2}
    samples = root / "samples"
    samples.mkdir()
    lines = [json.dumps({"index": index, "text": f"sample text {index}"}) for index in (1, 0, 2)]
    (samples / "part-00000.jsonl").write_text("\n".join(lines) + '\n{"index": 3, "te')
    plain = make_run(runs, "binary", machine=machine, protocol={"samples@0.5": str(samples)})
    config = row_config("soft", trainer={"max_steps": 77, "threads": None})
    soft = make_run(runs, "soft", ppl=11.0, machine=machine, config=config)
    make_metrics(soft, 0, [HEADER, "0,1.0,-1.0,0.3,10,3.0,", "0,1.1,-1.1,0.4,20,2.5,2.9"])
    write_json(plain / "trajectory.json", recording("a <b>denoised</b> text"))
    return report.build_report(experiment, str(runs))


def test_nothing_outside_is_loaded(page: str) -> None:
    outline = Outline()
    outline.feed(page)
    assert outline.images >= 3  # loss, omegas, throughput
    assert all(address.startswith(("data:image/svg+xml;base64,", "#")) for address in outline.loads)
    assert {address[1:] for address in outline.loads if address[0] == "#"} <= set(outline.ids)
    assert "@import" not in page
    assert "url(" not in page


def test_all_parts_are_there(page: str) -> None:
    for key in ("results", "figures", "texts", "trajectories", "settings", "environment", "commands"):
        assert f'<section id="{key}">' in page
    assert "<h1>&lt;Toy&gt; &amp; co</h1>" in page
    assert '<td class="none">not run</td>' in page
    assert "not drawn: frontier: no run has both gen/ppl and gen/entropy" in page
    assert "binary, temperature 0.5, sample 0" in page
    assert page.index("sample text 0") < page.index("sample text 1")
    assert "sample text 2" not in page
    assert "a &lt;b&gt;denoised&lt;/b&gt; text" in page
    assert "Test CPU" in page
    assert "python train.py experiments=toy/soft" in page


def test_differences_of_settings(page: str) -> None:
    cells = re.findall(r'<td class="l">(.*?)</td>', page)
    at = cells.index("trainer.max_steps")
    assert cells[at : at + 3] == ["trainer.max_steps", "100", "77"]
    at = cells.index("variant.name")
    assert cells[at : at + 3] == ["variant.name", "mdlm", "soft_masked"]


def test_trajectories_are_the_viewers_page(page: str) -> None:
    found = re.search(r'<iframe title="binary" srcdoc="(.*?)"></iframe>', page, re.DOTALL)
    assert found is not None
    inner = html.unescape(found[1])
    assert inner.startswith("<!DOCTYPE html>")
    assert inner.count("</script>") == 2  # the token that spells it cannot end the data


def test_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(experiments, "EXPERIMENTS", make_experiment(tmp_path / "experiments"))
    make_run(tmp_path / "runs", "binary")
    assert cli.main(["report", str(tmp_path / "runs" / "toy")]) == 0
    out = tmp_path / "runs" / "toy" / "report.html"
    assert capsys.readouterr().out == f"{out}\n"
    assert "experiment toy" in out.read_text()
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "neither an experiment (toy) nor a folder of runs named after one" in capsys.readouterr().err
    assert cli.main(["report", "toy", "--texts", "-1"]) == 2
    assert "--texts -1: must be >= 0" in capsys.readouterr().err
