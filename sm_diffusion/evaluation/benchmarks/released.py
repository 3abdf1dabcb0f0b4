"""Protocol `released`: what the authors of soft-masking ask Dream and how they read its answers.

Source: IBM/soft-masked-diffusion-language-models 091695d, coding/patches/eval_instruct.patch (:254-275 HumanEval and
MBPP, :299-345 MATH-500), applied to DreamLM/Dream fac0a7f `eval_instruct`, a fork of lm-evaluation-harness 0.4.8
(models/diffllm.py:310 and :343 end of text and stop strings). One user message, 0-shot; the assistant's turn is
begun for the model (`gen_prefix`) and continued. What follows from the order of its steps and looks odd is kept:

* a stop string cuts the answer before a fenced block is looked for, so a HumanEval answer that writes the function
  anew on its own line is judged as empty;
* `<|im_end|>` is an ordinary string: it ends an answer where it is a stop string (HumanEval, GSM8K) and stays in it
  elsewhere (MBPP, MATH-500), where it makes a program that does not parse;
* the message of MATH-500 holds doubled braces, `\\boxed{{}}`;
* MBPP+ is judged by MBPP's own three asserts, on the 378 problems of evalplus/mbppplus.
"""

from __future__ import annotations

import ast
import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

from sm_diffusion.evaluation.benchmarks.extract import NOTHING, Extracted

INVALID = "[invalid]"  # what the harness's filters give where no number is found
MAX_PROMPT_TOKENS = 1024  # longer prompts lose their beginning (coding/scripts/eval.sh, max_prompt_len)
_OPENING, _FENCE = "```python\n", "```"
_MOST_LINES = 100
_LEAD = "Here is the completed function:\n```python\n"


@dataclass(frozen=True)
class ReleasedPrompt:
    """user: the only message. prefix: start of the assistant's turn. Both take the fields of a row by name.
    stops: the answer is cut at each, in this order.
    """

    user: str
    prefix: str
    stops: tuple[str, ...]


PROMPTS: Mapping[str, ReleasedPrompt] = {
    "humaneval": ReleasedPrompt(
        "Write a solution to the following problem and make sure that it passes the tests:\n```{prompt}",
        _LEAD + "{prompt}\n",
        ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "<|im_end|>"),
    ),
    "mbpp": ReleasedPrompt(
        "You are an expert Python programmer, and here is your task: {text} Your code should pass these tests:\n\n"
        "{tests}",
        _LEAD,
        (_FENCE,),
    ),
    "gsm8k": ReleasedPrompt("Q: {question}\nA:", "", ("Q:", "</s>", "<|im_end|>")),
    "math500": ReleasedPrompt(
        "Please reason step by step, and put your final answer within \\boxed{{{{}}}}. Problem:\n{problem}\n\n"
        "Solution:",
        "",
        ("Problem:",),
    ),
}


def user_message(family: str, fields: Mapping[str, str]) -> str:
    """The user's message for a row of humaneval, mbpp, gsm8k or math500 (the plus sets use the same)."""
    return PROMPTS[family].user.format(**fields)


def gen_prefix(family: str, fields: Mapping[str, str]) -> str:
    """What the assistant's turn begins with; empty for numbers and mathematics."""
    return PROMPTS[family].prefix.format(**fields)


def mbpp_asserts(test_list: list[str]) -> str:
    """The three asserts shown to the model and run; those a row does not have are empty lines."""
    return "\n".join([*test_list, "", "", ""][:3])


def cut_at_stops(family: str, answer: str) -> str:
    """Text before the stop strings, each looked for in what the one before it left."""
    for stop in PROMPTS[family].stops:
        answer = answer.split(stop, 1)[0]
    return answer


# ------------------------------------------------------------------------------------------------------------ code


def humaneval_program(prompt: str, answer: str, entry_point: str) -> Extracted:
    """Program judged for an answer from which the stop strings are cut.

    What stands after the last opening of a Python block, up to the next fence, goes behind the problem's prompt and
    through `sanitized`. `how` is released.
    """
    body = answer.split(_OPENING)[-1].split(_FENCE)[0]
    return Extracted(sanitized(f"{prompt}\n{body}", entry_point), "released")


def mbpp_program(answer: str) -> Extracted:
    """The answer itself, from which the stop string is cut. `how` is released."""
    return Extracted(answer, "released")


def sanitized(text: str, entry_point: str) -> str:
    """Imports of a program, and those of its definitions that `entry_point` needs, as `ast.unparse` spells them.

    Behaviour of the harness's humaneval/sanitize_utils.py:80: tabs become four spaces and line ends \\n; of the first
    100 lines the run with most lines that are not blank and that parses as a whole is kept, the earliest among
    equals; of its top level remain imports, classes, functions with a `return`, and assignments to one name. Functions
    without a `return`, async functions, annotated and augmented assignments, loops and blocks are dropped. Empty where
    nothing remains.
    """
    text = text.replace("\t", "    ").replace("\r\n", "\n").replace("\r", "\n").strip() + "\n"
    tree = _longest_run(text.splitlines()[:_MOST_LINES])
    imports, definitions = [], {}
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            imports.append(node)
        elif (name := _defined_name(node)) is not None:
            definitions[name] = node
    needed = _reachable(entry_point, definitions)
    kept = [node for name, node in definitions.items() if name in needed]
    return "\n".join(ast.unparse(node) for node in [*imports, *kept])


def _longest_run(lines: list[str]) -> ast.Module:
    """Syntax tree of the run of lines that parses and has most lines that are not blank; an empty one if none does."""
    filled = [0]
    for line in lines:
        filled.append(filled[-1] + bool(line.strip()))
    best, found = 0, ast.Module(body=[], type_ignores=[])
    for start in range(len(lines)):
        for end in range(len(lines), start, -1):
            count = filled[end] - filled[start]
            if count <= best:
                break
            tree = _parsed("\n".join(lines[start:end]))
            if tree is not None:
                best, found = count, tree
                break
    return found


def _parsed(code: str) -> ast.Module | None:
    try:
        return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _defined_name(node: ast.stmt) -> str | None:
    if isinstance(node, ast.ClassDef):
        return node.name
    if isinstance(node, ast.FunctionDef):
        return node.name if any(isinstance(inner, ast.Return) for inner in ast.walk(node)) else None
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return None


def _reachable(entry_point: str, definitions: Mapping[str, ast.stmt]) -> set[str]:
    """`entry_point` and all names that it uses, directly or through other definitions."""
    seen, waiting = {entry_point}, deque([entry_point])
    while waiting:
        node = definitions.get(waiting.popleft())
        names = {inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)} if node is not None else set()
        waiting.extend(names - seen)
        seen |= names
    return seen


# --------------------------------------------------------------------------------------------------------- numbers

_STRICT = re.compile(r"The answer is (-?[0-9.,]+).")  # the last dot is any character
_FLEXIBLE = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
_IGNORED = (re.compile(r","), re.compile(r"\$"), re.compile(r"(?s).*#### "), re.compile(r"\.$"))


def gsm8k_strict(answer: str) -> str:
    """`strict-match` of gsm8k_cot: the first "The answer is N" that is followed by a character; else INVALID."""
    found = _STRICT.search(answer)
    return found.group(1).strip() if found else INVALID


def gsm8k_flexible(answer: str) -> str:
    """`flexible-extract` of gsm8k_cot: the last run of digits, `$`, `.` and `,`; else INVALID."""
    found = _FLEXIBLE.findall(answer)
    return str(found[-1]).strip() if found else INVALID


def gsm8k_gold(answer: str) -> str:
    """What stands behind the last `####` of a reference solution."""
    return answer.split("####")[-1].strip()


def gsm8k_equal(found: str, gold: str) -> bool:
    """`exact_match` of gsm8k_cot: equal but for case, `,`, `$`, text up to `#### ` and one full stop at the end."""
    return _bare(found) == _bare(gold)


def _bare(text: str) -> str:
    for pattern in _IGNORED:
        text = pattern.sub("", text)
    return text.lower()


def gsm8k_answer(answer: str) -> Extracted:
    """The number that decides here: `flexible-extract`. `how` is flexible or none."""
    found = gsm8k_flexible(answer)
    return NOTHING if found == INVALID else Extracted(found, "flexible")
