"""A document of tables as text, Markdown, LaTeX or HTML."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sm_diffusion.app.text import markdown_table, text_table, wrap_text

Lines = list[list[str]]


@dataclass(frozen=True)
class Grid:
    """lines: header and rows. num_labels: columns of words, to the left. break_before: see `text_table`."""

    lines: Lines
    num_labels: int = 1
    caption: str = ""
    break_before: str = ""


@dataclass(frozen=True)
class Document:
    """remarks: sentences below the tables."""

    title: str
    grids: Sequence[Grid]
    remarks: Sequence[str] = ()


def as_text(document: Document) -> str:
    """Aligned columns, at most TEXT_WIDTH characters wide."""
    parts = [document.title]
    for grid in document.grids:
        parts += [grid.caption] if grid.caption else []
        parts.append(text_table(grid.lines, grid.num_labels, break_before=grid.break_before))
    parts.append("\n".join(part for line in document.remarks for part in wrap_text(line)))
    return "\n\n".join(part for part in parts if part)


def as_markdown(document: Document) -> str:
    """Pipe tables below a heading."""
    parts = [f"### {document.title}"]
    for grid in document.grids:
        parts += [grid.caption] if grid.caption else []
        parts.append(markdown_table(grid.lines, grid.num_labels))
    parts.append("\n".join(f"- {line}" for line in document.remarks))
    return "\n\n".join(part for part in parts if part)


# ------------------------------------------------------------------------------------------------------------ LaTeX

_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    **{sign: f"\\{sign}" for sign in "&%$#_"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    '"': "''",
}


def latex_escaped(text: str) -> str:
    """Every sign that means something to LaTeX as the sign itself; a leading minus as a minus."""
    escaped = "".join(_LATEX.get(sign, sign) for sign in text)
    return f"$-${escaped[1:]}" if escaped[:1] == "-" and escaped[1:2].isdigit() else escaped


def as_latex(document: Document) -> str:
    """booktabs tables, each in a table environment; remarks as comments, for the caption."""
    parts = ["% needs \\usepackage{booktabs,graphicx}"]
    for index, grid in enumerate(document.grids):
        caption = document.title if index == 0 else grid.caption
        columns = "l" * grid.num_labels + "r" * (len(grid.lines[0]) - grid.num_labels)
        head, *body = [" & ".join(map(latex_escaped, line)) + r" \\" for line in grid.lines]
        parts.append(
            "\n".join(
                [
                    r"\begin{table}[t]",
                    r"\centering",
                    rf"\caption{{{latex_escaped(caption)}}}",
                    r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
                    rf"\begin{{tabular}}{{{columns}}}",
                    r"\toprule",
                    head,
                    r"\midrule",
                    *body,
                    r"\bottomrule",
                    r"\end{tabular}}",
                    r"\end{table}",
                ]
            )
        )
    parts.append("\n".join(f"% {line}" for line in document.remarks))
    return "\n\n".join(part for part in parts if part)


# ------------------------------------------------------------------------------------------------------------- HTML

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:70em;padding:0 1em}
table{border-collapse:collapse;margin:1em 0;font-variant-numeric:tabular-nums}
th,td{padding:.25em .8em;border-bottom:1px solid #d9dce0;text-align:right;vertical-align:top}
thead th{border-bottom:2px solid #6a7380}.l{text-align:left}.none{color:#6a7380}.warning{color:#8a3b00}"""
QUIET = ("not run", "-")


def html_table(grid: Grid) -> str:
    """One <table>; cells that hold no number are grey."""
    head, *body = grid.lines

    def cells(line: Sequence[str], tag: str) -> str:
        made = []
        for index, cell in enumerate(line):
            names = [name for name, holds in (("l", index < grid.num_labels), ("none", cell in QUIET)) if holds]
            attribute = f' class="{" ".join(names)}"' if names else ""
            made.append(f"<{tag}{attribute}>{html.escape(cell)}</{tag}>")
        return f"<tr>{''.join(made)}</tr>"

    caption = f"<p>{html.escape(grid.caption)}</p>\n" if grid.caption else ""
    rows = "\n".join(cells(line, "td") for line in body)
    return f"{caption}<table>\n<thead>{cells(head, 'th')}</thead>\n<tbody>\n{rows}\n</tbody></table>"


def html_remarks(remarks: Sequence[str]) -> str:
    """A list; warnings stand out."""
    lines = []
    for text in remarks:
        mark = ' class="warning"' if text.startswith(("warning:", "missing:", "unfinished:")) else ""
        lines.append(f"<li{mark}>{html.escape(text)}</li>")
    return f"<ul>\n{chr(10).join(lines)}\n</ul>" if lines else ""


def as_html(document: Document) -> str:
    """A whole page with nothing outside it."""
    title = html.escape(document.title)
    body = "\n".join([*map(html_table, document.grids), html_remarks(document.remarks)])
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body><h1>{title}</h1>\n{body}\n</body></html>"
    )


RENDERERS: Mapping[str, Callable[[Document], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "latex": as_latex,
    "html": as_html,
}
