"""The page of `smd report`: one HTML file with everything inside, made from sections."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_STYLE = """
:root{--fg:#1d2126;--dim:#5c6570;--line:#d9dce0;--soft:#f4f5f3;--accent:#0072b2;--warn:#8a3b00}
*{box-sizing:border-box}
body{margin:0;color:var(--fg);background:#fff;font:15px/1.55 system-ui,sans-serif}
header,main{max-width:76rem;margin:0 auto;padding:0 1.5rem}
header{padding-top:2rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .3rem}
h2{font-size:1.2rem;margin:2.6rem 0 .8rem;padding-bottom:.25rem;border-bottom:2px solid var(--line)}
h3{font-size:1rem;margin:1.4rem 0 .4rem}
p{margin:.5rem 0}
.dim{color:var(--dim)}
nav{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;margin:1rem 0 0}
a{color:var(--accent)}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:.8rem 0;font-variant-numeric:tabular-nums;font-size:14px}
th,td{padding:.3em .8em;border-bottom:1px solid var(--line);text-align:right;vertical-align:top}
thead th{border-bottom:2px solid #8b939c;white-space:nowrap}
#results td{white-space:nowrap}
.l{text-align:left}
.none{color:var(--dim)}
.warning{color:var(--warn)}
ul{padding-left:1.2rem;margin:.6rem 0}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(30rem,100%),1fr));gap:1.5rem}
figure{margin:0}
figure img{width:100%;height:auto;border:1px solid var(--line)}
figcaption{color:var(--dim);font-size:14px}
pre{background:var(--soft);border:1px solid var(--line);border-radius:6px;padding:.8rem 1rem;overflow-x:auto;
font:13px/1.5 ui-monospace,Menlo,Consolas,monospace;margin:.5rem 0}
pre.text{white-space:pre-wrap;overflow-wrap:anywhere}
details{margin:.4rem 0}
summary{cursor:pointer;color:var(--accent)}
iframe{width:100%;height:27rem;border:1px solid var(--line);border-radius:6px}
footer{color:var(--dim);font-size:13px;margin:3rem 0 2rem}
@media print{nav,iframe{display:none}h2{break-after:avoid}figure,table{break-inside:avoid}}
"""


@dataclass(frozen=True)
class Section:
    """body: ready HTML; a section without one is left out."""

    key: str
    title: str
    body: str


def page(title: str, about: str, sections: Sequence[Section]) -> str:
    """The whole file. about: plain text below the title."""
    shown = [section for section in sections if section.body]
    links = "".join(f'<a href="#{section.key}">{html.escape(section.title)}</a>' for section in shown)
    parts = [
        f'<section id="{section.key}"><h2>{html.escape(section.title)}</h2>\n{section.body}</section>'
        for section in shown
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body><header><h1>{html.escape(title)}</h1>\n"
        f'<p class="dim">{html.escape(about)}</p><nav>{links}</nav></header>\n<main>{chr(10).join(parts)}\n'
        "<footer>Written by smd report. This file refers to nothing outside itself.</footer></main></body></html>\n"
    )


def paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>"


def heading(text: str) -> str:
    return f"<h3>{html.escape(text)}</h3>"


def wide(markup: str) -> str:
    """What may be wider than the window scrolls by itself."""
    return f'<div class="wide">{markup}</div>'


def code(text: str, *, wrapped: bool = False) -> str:
    """Text as it stands; wrapped: lines may be broken."""
    return f"<pre{' class=text' if wrapped else ''}>{html.escape(text)}</pre>"


def folded(title: str, markup: str) -> str:
    return f"<details><summary>{html.escape(title)}</summary>{markup}</details>"


def figures(files: Mapping[str, Path]) -> str:
    """SVG files by caption, as images inside the page: their inner names cannot clash."""
    made = []
    for caption, path in files.items():
        data = base64.b64encode(path.read_bytes()).decode("ascii")
        text = html.escape(caption)
        image = f'<img alt="{text}" src="data:image/svg+xml;base64,{data}">'
        made.append(f"<figure>{image}<figcaption>{text}</figcaption></figure>")
    return f'<div class="figures">{"".join(made)}</div>' if made else ""


def framed(title: str, inner_page: str) -> str:
    """A page inside the page, with its own style and script."""
    return f'<iframe title="{html.escape(title)}" srcdoc="{html.escape(inner_page)}"></iframe>'
