"""`smd view`: a recorded denoising as one HTML page that needs no network; two recordings side by side."""

from __future__ import annotations

import argparse
import json
import sys
import webbrowser
from pathlib import Path
from typing import Any

from sm_diffusion.cli.sample import FORMAT
from sm_diffusion.files import read_json, write_text
from sm_diffusion.reproduction.report.trajectory_page import PAGE
from sm_diffusion.types import UserError

HELP = "show how a recorded text was denoised, as one HTML page"
EXAMPLES = """
smd view run.json        # made by: smd sample last.ckpt --json run.json
smd view mdlm.json sm.json --out denoising.html
"""
_KEYS = ("checkpoint", "variant", "sampler", "seed", "states", "mask_id", "tokens", "rows")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recordings", type=Path, nargs="+", metavar="RUN.json", help="one or two, of smd sample --json")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: beside the first, ending in .html")
    parser.add_argument("--open", action="store_true", help="open it in the browser")


def run(args: argparse.Namespace) -> int:
    if len(args.recordings) > 2:
        raise UserError(f"{len(args.recordings)} recordings: give one, or two to compare")
    out = args.out or args.recordings[0].with_suffix(".html")
    page = build_page([read_recording(path) for path in args.recordings])
    write_text(out, page)
    print(out)
    if args.open and not webbrowser.open(out.absolute().as_uri()):
        print("no browser found; open the file by hand", file=sys.stderr)
    return 0


def read_recording(path: Path) -> dict[str, Any]:
    """A file of `smd sample --json`; UserError naming it for anything else."""
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT or any(key not in found for key in _KEYS):
        raise UserError(f"{path}: not a recording; make one with: smd sample CHECKPOINT --json {path.name}")
    if not found["rows"]:
        raise UserError(f"{path}: holds no text")
    return found


def build_page(recordings: list[dict[str, Any]]) -> str:
    """The page with its data inside. No `<` of the data can end the script element it lies in."""
    data = json.dumps(recordings, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    title = " and ".join(f"{recording['variant']}, {recording['sampler']['name']}" for recording in recordings)
    safe = title.replace("&", "&amp;").replace("<", "&lt;")
    return PAGE.replace("__TITLE__", safe).replace("__DATA__", data)
