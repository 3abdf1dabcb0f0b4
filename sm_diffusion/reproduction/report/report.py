"""A reproduction as one HTML page: tables, figures, texts, trajectories, settings, environment."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sm_diffusion.reproduction.collect import check_source
from sm_diffusion.reproduction.collected import Row
from sm_diffusion.reproduction.experiment import RUNS, Experiment, list_experiments, load_experiment
from sm_diffusion.reproduction.report import texts
from sm_diffusion.reproduction.report.formats import Grid, html_remarks, html_table
from sm_diffusion.reproduction.report.page import Section, code, figures, folded, framed, heading, page, paragraph, wide
from sm_diffusion.reproduction.report.plots import KINDS, Source, draw_all, source_of
from sm_diffusion.reproduction.report.table import build_document
from sm_diffusion.reproduction.report.trajectory_page import build_page
from sm_diffusion.reproduction.state import config_differences
from sm_diffusion.types import UserError

CAPTIONS = {
    "loss": "Loss against optimizer steps",
    "omegas": "The learned omegas against optimizer steps",
    "lambda": "Learned share of the predicted tokens, by the entropy of the prediction",
    "accuracy": "Accuracy against network evaluations",
    "frontier": "Generative perplexity and entropy: better is lower right",
    "throughput": "Throughput against quality; the bars are a standard deviation over seeds",
}
SIDE_BY_SIDE = 2  # recordings in one frame


def build_report(experiment: Experiment, where: str = str(RUNS), *, num_texts: int = 0) -> str:
    """The page. num_texts: texts denoised for each row whose checkpoint is there and that has no recording yet."""
    source = source_of(experiment, where)
    rows = [row for row in source.collected.rows if row.runs]
    document = build_document(experiment, source.collected)
    tables = "\n".join(wide(html_table(grid)) for grid in document.grids) + html_remarks(document.remarks)
    sections = [
        Section("results", "Results", tables),
        Section("figures", "Figures", _figures(source)),
        *_texts(rows, num_texts=num_texts),
        Section("settings", "Settings", _settings(rows)),
        Section("environment", "Environment", _environment(rows)),
        Section("commands", "Commands", _commands(experiment, rows)),
    ]
    versions = sorted({str(run.get("git_commit"))[:10] for row in rows for run in row.runs.values()})
    code_words = f"code {', '.join(versions)}" if versions else "nothing was run yet"
    return page(experiment.title, f"experiment {experiment.name}, {code_words}", sections)


def _figures(source: Source) -> str:
    with tempfile.TemporaryDirectory() as folder:
        drawn: dict[str, Path] = {}
        missing: dict[str, str] = {}
        for kind in KINDS:
            files, reasons = draw_all(source, Path(folder), [kind], ["svg"])
            missing |= reasons
            for path in files:
                drawn[CAPTIONS[kind] + (f" ({path.stem})" if len(files) > 1 else "")] = path
        body = figures(drawn)
    return body + html_remarks([f"not drawn: {kind}: {reason}" for kind, reason in missing.items()])


def _texts(rows: Sequence[Row], *, num_texts: int) -> list[Section]:
    found, remarks = texts.recordings(rows, num_texts=num_texts)
    shown = [item for row in rows for item in texts.generated_texts(row)]
    shown += [
        (f"{label}, text {index + 1}", row["text"]) for label, run in found for index, row in enumerate(run["rows"])
    ]
    body = "\n".join(f"{heading(title)}{code(texts.shortened(text), wrapped=True)}" for title, text in shown)
    frames = [
        paragraph(
            "How the texts came about, step by step. The slider, the arrow keys and a pointer on a token tell more."
        )
    ]
    for start in range(0, len(found), SIDE_BY_SIDE):
        part = found[start : start + SIDE_BY_SIDE]
        title = " and ".join(label for label, _ in part)
        frames.append(heading(title) + framed(title, build_page([run for _, run in part])))
    none = paragraph("No texts: evaluate with evaluator=generative, or make some with smd report --texts 2.")
    trajectories = "\n".join(frames) if found else ""
    return [
        Section("texts", "Texts", body or none),
        Section("trajectories", "Trajectories", trajectories + html_remarks(remarks)),
    ]


def _settings(rows: Sequence[Row]) -> str:
    """What differs between rows as a table, then each row's whole configuration."""
    configs = {row.label: config for row in rows if (config := _first_config(row))}
    if not configs:
        return ""
    body = (
        [wide(html_table(Grid(lines, len(lines[0]), caption="Settings in which the rows differ:")))]
        if (lines := _differences(configs))
        else []
    )
    for label, config in configs.items():
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        body.append(folded(f"{label}: whole configuration", code(text)))
    return "\n".join(body)


def _first_config(row: Row) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(iter(row.runs.values())).get("config") or {}
    return found


def _differences(configs: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Header and a line for each setting that two rows do not share; empty when they share all."""
    labels = list(configs)
    first = configs[labels[0]]
    # `key: value in the first row -> value in the other`
    told = {
        label: dict(line.split(": ", 1) for line in config_differences(first, configs[label])) for label in labels[1:]
    }
    keys = sorted({key for found in told.values() for key in found} - {"name"})
    lines = [["setting", *labels]] if keys else []
    for key in keys:
        old = next(found[key].split(" -> ")[0] for found in told.values() if key in found)
        others = [told[label][key].split(" -> ", 1)[1] if key in told[label] else old for label in labels[1:]]
        lines.append([key, old, *others])
    return lines


def _environment(rows: Sequence[Row]) -> str:
    """Each distinct environment once, with the rows made in it."""
    groups: dict[str, list[str]] = {}
    for row in rows:
        for seed, results in row.runs.items():
            found = texts.environment_of(texts.own_folder(row), results)
            if any(found.values()):
                groups.setdefault(yaml.safe_dump(found, sort_keys=False, allow_unicode=True), []).append(
                    f"{row.label} (seed {seed})"
                )
    parts = [paragraph(", ".join(names)) + code(text) for text, names in groups.items()]
    return "\n".join(parts)


def _commands(experiment: Experiment, rows: Sequence[Row]) -> str:
    seeds = sorted({seed for row in rows for seed in row.runs})
    given = f" --seeds {','.join(map(str, seeds))}" if len(seeds) > 1 else ""
    name = experiment.name
    lines = [f"smd run {name}{given}", f"smd table {name}", f"smd plot {name}", f"smd report {name}"]
    single = []
    for row in experiment.rows:
        evaluates = any("evaluator" in _first_config(found) for found in rows if found.name == row)
        single.append(f"python {'eval' if evaluates else 'train'}.py experiments={name}/{row}")
    note = "A run's settings are those above; what was changed on the command line is among them, not in these lines."
    return code("\n".join(lines)) + paragraph("One row by itself:") + code("\n".join(single)) + paragraph(note)


def find_experiment(target: str, where: str) -> tuple[Experiment, str]:
    """(experiment, where its runs are) of a name, or of the folder that holds the runs of its rows."""
    if target in list_experiments():
        return load_experiment(target), check_source(where)
    folder = Path(target)
    if folder.is_dir() and folder.resolve().name in list_experiments():
        return load_experiment(folder.resolve().name), str(folder.resolve().parent)
    names = ", ".join(list_experiments()) or "none"
    raise UserError(f"{target}: neither an experiment ({names}) nor a folder of runs named after one")
