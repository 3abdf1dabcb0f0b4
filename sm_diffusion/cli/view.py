"""`smd view`: a recorded denoising as one HTML page that needs no network; two recordings side by side."""

from __future__ import annotations

import argparse
import sys
import webbrowser
from pathlib import Path

from sm_diffusion.files import write_text
from sm_diffusion.types import UserError

HELP = "show how a recorded text was denoised, as one HTML page"
EXAMPLES = """
smd view run.json        # made by: smd sample last.ckpt --json run.json
smd view mdlm.json sm.json --out denoising.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recordings", type=Path, nargs="+", metavar="RUN.json", help="one or two, of smd sample --json")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: beside the first, ending in .html")
    parser.add_argument("--open", action="store_true", help="open it in the browser")


def run(args: argparse.Namespace) -> int:
    from sm_diffusion.reproduction.report.trajectory_page import build_page, read_recording

    if len(args.recordings) > 2:
        raise UserError(f"{len(args.recordings)} recordings: give one, or two to compare")
    out = args.out or args.recordings[0].with_suffix(".html")
    page = build_page([read_recording(path) for path in args.recordings])
    write_text(out, page)
    print(out)
    if args.open and not webbrowser.open(out.absolute().as_uri()):
        print("no browser found; open the file by hand", file=sys.stderr)
    return 0
