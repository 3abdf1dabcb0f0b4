"""Local tasks of lm-evaluation-harness: generation, multiple choice, likelihood, whole texts."""

from __future__ import annotations

import json
from pathlib import Path

NUM_DOCS = 6
_HEAD = """task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
"""
_BODIES = {
    "smd_copy": """output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 8, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
    "smd_choice": """output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: ["yes", "no", "both of them"]
doc_to_target: "{{label}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}, {metric: acc_norm}]
""",
    "smd_last": """output_type: loglikelihood
doc_to_text: "{{question}}"
doc_to_target: " {{answer}}"
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "smd_text": """output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
}
TASKS = tuple(_BODIES)


def write_tasks(folder: Path) -> Path:
    """A folder for `--include_path`: one yaml a task, all over the same jsonl."""
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "items.jsonl"
    docs = [
        {"question": f"is {n} odd?", "answer": f"{n}", "label": n % 2, "text": "the cat sat on a mat. " * (n + 1)}
        for n in range(NUM_DOCS)
    ]
    data.write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    for name, body in _BODIES.items():
        (folder / f"{name}.yaml").write_text(_HEAD.format(name=name, data=data) + body)
    return folder
