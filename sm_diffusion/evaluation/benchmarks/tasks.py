"""Benchmark tasks: what a model is asked, and how its answer becomes a program or a value.

    task = build_task("humaneval")                       # rows, prompts, protocol
    prompts = [task.prompt(problem) for problem in task.problems]
    score = score_answers(task, answers, executor)       # `code_score`: one record an answer, and a summary

Token budgets are the published ones (0-shot chat; HumanEval(+) 768 new tokens, MBPP(+) 512, GSM8K 256, MATH-500 512).
Style `released` asks and reads as the authors of soft-masking do (`released`); the texts of the other styles are this
project's own. `protocol()` carries their hash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from sm_diffusion.evaluation.benchmarks import checks as code_checks
from sm_diffusion.evaluation.benchmarks import extract, extract_first, released, released_math
from sm_diffusion.evaluation.benchmarks.extract import Extracted
from sm_diffusion.evaluation.benchmarks.task_data import TaskRows, load_rows, source_of
from sm_diffusion.evaluation.execution.executor import Checks
from sm_diffusion.evaluation.execution.limits import ExecutionLimits
from sm_diffusion.files import digest
from sm_diffusion.types import UserError

Style = Literal["chat", "chat_prefix", "completion", "released"]
STYLES = get_args(Style)
RULES = ("search", "first_block", "released")
_CODE_STOPS = ("\nclass ", "\ndef ", "\n#", "\nif __name__", "\nprint(", "\n@", "\n```", "\nassert ")
_TEMPLATES: Mapping[str, Mapping[str, str]] = {
    "humaneval": {
        "chat": "Complete the following Python function so that it does what its docstring says. Reply with the whole "
        "function in one Python code block.\n\n```python\n{prompt}\n```",
        "prefix": "```python\n{prompt}",
        "completion": "{prompt}",
    },
    "mbpp": {
        "chat": "{text}\nYour Python code should pass these tests:\n\n{tests}\n\nReply with one Python code block.",
        "prefix": "```python\n",
        "completion": "{shots}You are an expert Python programmer, and here is your task: {text} Your code should pass "
        "these tests:\n\n{tests}\n[BEGIN]\n",
    },
    "gsm8k": {
        "chat": "{question}\nReason step by step, and put the final number in \\boxed{{}}.",
        "prefix": "",
        "completion": "Question: {question}\nAnswer:",
    },
    "math500": {
        "chat": "{problem}\nReason step by step, and put the final answer in \\boxed{{}}.",
        "prefix": "",
        "completion": "Problem:\n{problem}\n\nSolution:",
    },
}
_COMPLETION_STOPS = {
    "humaneval": _CODE_STOPS,
    "mbpp": ("[DONE]", "\n[BEGIN]"),
    "gsm8k": ("\nQuestion:", "\n\n\n"),
    "math500": ("\nProblem:", "\n\n\n"),
}
_PLUS_LIMITS = ExecutionLimits(cpu_seconds=20, wall_seconds=60)
# The reference of MBPP+ 599 sums ranges of 10^8 numbers 26 times: about 45 s of CPU, in the program and in the judge.
_HEAVY = {"Mbpp/599": ExecutionLimits(cpu_seconds=300, wall_seconds=600)}


@dataclass(frozen=True)
class Problem:
    """One problem. `checks` maps a label (`tests`, or `base` and `plus`) to tests; `gold` is for numbers and math."""

    task_id: str
    fields: Mapping[str, str]
    entry_point: str | None = None
    prelude: str = ""
    reference: str = ""
    checks: Mapping[str, Checks] | None = None
    gold: str | None = None
    limits: ExecutionLimits | None = None


@dataclass(frozen=True)
class Prompt:
    """What the model gets.

    messages: chat messages ({"role", "content"}), empty for completion models.
    text:     completion: the whole prompt. chat_prefix: what the reply begins with, to be put after the chat
              template's generation prompt and not generated; released: likewise, or empty. chat: empty.
    """

    messages: tuple[Mapping[str, str], ...]
    text: str


@dataclass(frozen=True)
class Task:
    """One benchmark in one prompt style. Made by `build_task`. rules: how answers are read, one of RULES."""

    name: str
    style: str
    problems: tuple[Problem, ...]
    data: TaskRows
    shots: str = ""
    num_few_shot: int = 0
    rules: str = "search"

    @property
    def family(self) -> str:
        return self.name.removesuffix("_plus")

    @property
    def max_new_tokens(self) -> int:
        """Token budget of the published protocol."""
        return source_of(self.name).new_tokens

    @property
    def stops(self) -> tuple[str, ...]:
        """Strings that end an answer; those of chat and chat_prefix end at the model's end token alone."""
        if self.style == "released":
            return released.PROMPTS[self.family].stops
        return tuple(_COMPLETION_STOPS[self.family]) if self.style == "completion" else ()

    @property
    def max_prompt_tokens(self) -> int | None:
        """Longer prompts lose their beginning; None: they do not."""
        return released.MAX_PROMPT_TOKENS if self.style == "released" else None

    @property
    def turns_end(self) -> bool:
        """An end of the assistant's turn ends the answer; else the end of text alone does."""
        return self.style != "released"

    @property
    def runs_code(self) -> bool:
        return source_of(self.name).runs_code

    def prompt(self, problem: Problem) -> Prompt:
        """The prompt of a problem in this task's style."""
        if self.style == "released":
            message = released.user_message(self.family, problem.fields)
            prefix = released.gen_prefix(self.family, problem.fields)
            return Prompt(({"role": "user", "content": message},), prefix)
        templates = _TEMPLATES[self.family]
        fields = {**problem.fields, "shots": self.shots}
        if self.style == "completion":
            return Prompt((), templates["completion"].format(**fields))
        text = templates["chat"].format(**fields)
        prefix = templates["prefix"].format(**fields) if self.style == "chat_prefix" else ""
        return Prompt(({"role": "user", "content": text},), prefix)

    def extract(self, problem: Problem, answer: str) -> Extracted:
        """The program (helpers and imports of the prompt put before it) or the value in an answer."""
        if self.style == "released":
            return self._extract_released(problem, answer)
        if self.rules == "first_block" and self.style != "completion":
            return self._extract_first(problem, answer)
        if not self.runs_code:
            body, _ = extract.truncate_at(answer, self.stops)
            return extract.gsm8k_answer(body) if self.name == "gsm8k" else extract.math_answer(body)
        if self.style == "completion":
            start = problem.fields["prompt"] if self.family == "humaneval" else ""
            return extract.continue_prompt(start, answer, self.stops)
        found = extract.extract_code(self.prompt(problem).text + answer, problem.entry_point)
        return found if found.value is None else Extracted(_after(problem.prelude, found.value), found.how)

    def _extract_released(self, problem: Problem, answer: str) -> Extracted:
        answer = released.cut_at_stops(self.family, answer)
        if self.family == "humaneval":
            return released.humaneval_program(problem.fields["prompt"], answer, problem.entry_point or "")
        if self.family == "mbpp":
            return released.mbpp_program(answer)
        return released.gsm8k_answer(answer) if self.name == "gsm8k" else Extracted(answer, "whole")

    def matches(self, problem: Problem, value: str) -> bool:
        """Whether a value found in an answer to a problem of numbers or mathematics is the gold answer."""
        assert problem.gold is not None
        if self.style == "released":
            equal = released.gsm8k_equal if self.family == "gsm8k" else released_math.math_verified
            return equal(value, problem.gold)
        return value == problem.gold if self.family == "gsm8k" else extract.same_math(value, problem.gold)

    def _extract_first(self, problem: Problem, answer: str) -> Extracted:
        if not self.runs_code:
            return extract_first.last_number(answer) if self.name == "gsm8k" else extract_first.boxed(answer)
        found = extract_first.first_block(self.prompt(problem).text + answer)
        if found.value is None:
            return found
        defines = extract.defines(problem.entry_point or "", found.value)
        if self.family == "humaneval" and not defines:
            return Extracted(problem.fields["prompt"] + found.value, found.how)
        return Extracted(_after(problem.prelude, found.value), found.how)

    def protocol(self) -> dict[str, Any]:
        """What has to be equal for two scores to be comparable, as far as the task decides it."""
        if self.style == "released":
            template = "\0".join([released.PROMPTS[self.family].user, released.PROMPTS[self.family].prefix])
        else:
            parts = {"chat": ["chat"], "chat_prefix": ["chat", "prefix"], "completion": ["completion"]}[self.style]
            template = "\0".join([*(_TEMPLATES[self.family][part] for part in parts), self.shots])
        return {
            "task": self.name,
            "style": self.style,
            "prompt_sha256": digest(template),
            "num_few_shot": self.num_few_shot,
            "stop_strings": list(self.stops),
            "extraction": self.rules,
            "max_new_tokens": self.max_new_tokens,
            "data": Path(self.data.origin).name,
            "data_sha256": self.data.sha256,
            "num_problems": len(self.problems),
        }


def build_task(
    name: str, path: str | Path | None = None, *, style: str = "chat", split: str = "test", rules: str = "search"
) -> Task:
    """A task with its rows, see `task_data.load_rows` for `path` and `split`.

    style: chat (0-shot), chat_prefix (the reply starts with a given text; code only), completion (base models; MBPP
        with 3 examples, tasks 2, 3 and 4 of the same file), released (0-shot, the authors' texts and reading).
    rules: search (`extract`: the block that defines the function, wherever it stands) or first_block (`extract_first`:
        what lm-evaluation-harness and its forks take). Style released has rules of its own, whatever is given.
    Raises: UserError for an unknown task, style or rules, or bad data; for math500 in style released where the library
        math_verify is missing.
    """
    source_of(name)
    family = name.removesuffix("_plus")
    if style not in STYLES or (style == "chat_prefix" and not _TEMPLATES[family]["prefix"]):
        choices = [item for item in STYLES if item != "chat_prefix" or _TEMPLATES[family]["prefix"]]
        raise UserError(f"style: {name} has no style {style!r}; choose from {', '.join(choices)}")
    if rules not in RULES:
        raise UserError(f"rules: no rules {rules!r}; choose from {', '.join(RULES)}")
    data = load_rows(name, path, split=split)
    if style == "released":
        if name == "math500":
            released_math.require_math_verify()
        problems = tuple(_released_problem(name, row, index, data.origin) for index, row in enumerate(data.rows))
        return Task(name, style, problems, data, rules="released")
    rules = "search" if rules == "released" else rules
    makers = {"humaneval": _humaneval_problem, "mbpp": _mbpp_problem, "gsm8k": _gsm8k_problem, "math500": _math_problem}
    problems = tuple(makers[family](row, index) for index, row in enumerate(data.rows))
    if name == "mbpp" and style == "completion":
        examples = [_mbpp_problem(row, 0) for row in load_rows(name, path, split="few_shot").rows]
        shots = "".join(_shot(example) for example in examples)
        return Task(name, style, problems, data, shots, len(examples), rules)
    return Task(name, style, problems, data, rules=rules)


def _after(prelude: str, code: str) -> str:
    """Code after a prelude; its `from __future__` lines, which must come first, go before it."""
    lines = code.split("\n")
    first = [line for line in lines if line.startswith("from __future__ ")]
    return "\n".join([*first, prelude, *[line for line in lines if line not in first]]) if first else prelude + code


def _shot(example: Problem) -> str:
    template = _TEMPLATES["mbpp"]["completion"].format(**example.fields, shots="")
    return f"{template}{example.reference}\n[DONE]\n\n"


def _humaneval_problem(row: Mapping[str, Any], _: int) -> Problem:
    entry, prompt = str(row["entry_point"]), str(row["prompt"])
    plus = "plus_input" in row
    checks = code_checks.plus_checks(row) if plus else {"tests": code_checks.humaneval_checks(row)}
    return Problem(
        task_id=str(row["task_id"]),
        fields={"prompt": prompt.strip("\n") + "\n"},
        entry_point=entry,
        prelude=code_checks.prelude_of(prompt, entry),
        reference=prompt + str(row["canonical_solution"]),
        checks=checks,
        limits=_PLUS_LIMITS if plus else None,
    )


def _mbpp_problem(row: Mapping[str, Any], _: int) -> Problem:
    plus = "plus_input" in row
    checks = code_checks.plus_checks(row) if plus else {"tests": code_checks.mbpp_checks(row)}
    names = next(iter(checks.values())).names
    text = str(row["prompt"] if "prompt" in row else row["text"]).strip().strip('"' + "'").strip()
    tests = row["assertion"].strip() if plus else "\n".join(row["test_list"])
    if plus:  # the released prompt ends with one assertion, shown below with the others
        text = text.split("\nassert ")[0].strip()
    return Problem(
        task_id=str(row["task_id"]),
        fields={"text": text, "tests": tests},
        entry_point=names[-1],
        reference=str(row["canonical_solution"] if plus else row["code"]).replace("\r\n", "\n"),
        checks=checks,
        limits=_HEAVY.get(str(row["task_id"]), _PLUS_LIMITS) if plus else None,
    )


def _gsm8k_problem(row: Mapping[str, Any], index: int) -> Problem:
    gold = extract.gsm8k_gold(str(row["answer"]))
    return Problem(f"gsm8k/{index}", {"question": str(row["question"])}, reference=str(row["answer"]), gold=gold)


def _math_problem(row: Mapping[str, Any], _: int) -> Problem:
    return Problem(str(row["unique_id"]), {"problem": str(row["problem"])}, gold=str(row["answer"]))


def _released_problem(name: str, row: Mapping[str, Any], index: int, origin: str) -> Problem:
    """A problem as the authors' harness has it: the row's own text, the three asserts of MBPP and MBPP+, raw gold."""
    family = name.removesuffix("_plus")
    if family == "humaneval":
        problem = _humaneval_problem(row, index)
        return replace(problem, fields={"prompt": str(row["prompt"])})
    if family == "gsm8k":
        return Problem(
            f"gsm8k/{index}",
            {"question": str(row["question"])},
            reference=str(row["answer"]),
            gold=released.gsm8k_gold(str(row["answer"])),
        )
    lacks = "solution" if family == "math500" else "test_list"
    if lacks not in row:
        hub = "evalplus/mbppplus" if name == "mbpp_plus" else "HuggingFaceH4/MATH-500"
        raise UserError(f"{origin}: the released protocol needs a field {lacks} in each row; use {hub} of the hub")
    if family == "math500":
        gold = released_math.gold_answer(str(row["solution"]))
        return Problem(str(row["unique_id"]), {"problem": str(row["problem"])}, gold=gold)
    text = str(row["text"] if name == "mbpp" else row["prompt"])
    tests = released.mbpp_asserts(list(row["test_list"]))
    base = {"task_id": row["task_id"], "code": row["code"], "test_setup_code": "", "test_list": [tests]}
    checks = code_checks.mbpp_checks(base)
    return Problem(
        task_id=str(row["task_id"]),
        fields={"text": text, "tests": tests},
        entry_point=checks.names[-1],
        reference=str(row["code"]).replace("\r\n", "\n"),
        checks={"tests": checks},
    )
