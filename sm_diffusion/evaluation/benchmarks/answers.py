"""Answers of a model to a task's problems and their verdicts: made once, resumed after a kill, shared out over ranks.

A folder holds those of one checkpoint, protocol and number of steps:

    answers.json            what decides them; a folder of another is refused
    answer-<rank>.jsonl     appended a batch at a time
    verdict-<rank>.jsonl    appended a chunk at a time
    records.jsonl           both joined, for people; written when all are there
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sm_diffusion.data.chat.format import ChatFormat, stop_ids_of
from sm_diffusion.data.tokenizers.base import TextTokenizer
from sm_diffusion.evaluation.benchmarks.extract import truncate_at
from sm_diffusion.evaluation.benchmarks.judging import Answer, Record, judge_answers
from sm_diffusion.evaluation.benchmarks.tasks import Problem, Task
from sm_diffusion.evaluation.execution.executor import Executor
from sm_diffusion.evaluation.generation.samples import row_seed
from sm_diffusion.files import KeyedFolder, write_text
from sm_diffusion.sampling import RowNoise, Sampler, from_prompts
from sm_diffusion.types import UserError

_CHUNK = 32  # answers judged between two writes
_MAX_PROBLEMS = 2**16


class Slot(NamedTuple):
    """Which answer: of one seed, to one problem, the how-manieth."""

    seed: int
    task_id: str
    sample: int


@dataclass(frozen=True)
class GeneratedAnswer:
    """One answer.

    prompt:     as the model saw it, special tokens spelt out.
    completion: text before the first end token; num_tokens: of it.
    nfe:        network evaluations spent.     seconds: its share of its batch's time.
    truncated:  neither an end token nor a stop string: the token budget ended it.
    """

    task_id: str
    sample: int
    seed: int
    prompt: str
    completion: str
    num_tokens: int
    nfe: int
    truncated: bool
    seconds: float

    @property
    def slot(self) -> Slot:
        return Slot(self.seed, self.task_id, self.sample)


class AnswerStore:
    """The folder of one setting."""

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self._files = KeyedFolder(folder, key, setting="evaluator.records_dir", what="answers")
        self.folder = folder

    def answers(self) -> dict[Slot, GeneratedAnswer]:
        """Those that are there, whole."""
        found: dict[Slot, GeneratedAnswer] = {}
        for line in self._files.lines("answer"):
            answer = GeneratedAnswer(**line)
            found.setdefault(answer.slot, answer)
        return found

    def append(self, answers: Sequence[GeneratedAnswer], *, rank: int) -> None:
        self._files.append("answer", [asdict(answer) for answer in answers], rank=rank)

    def verdicts(self, judge: str) -> dict[Slot, Record]:
        """By this judge (executor and limits); those of another are made again."""
        found: dict[Slot, Record] = {}
        for line in self._files.lines("verdict"):
            seed, by, record = line["seed"], line["judge"], line["record"]
            if by == judge:
                found[Slot(seed, record["task_id"], record["sample"])] = Record(**record)
        return found

    def append_verdicts(self, records: Mapping[Slot, Record], judge: str) -> None:
        rows = [{"seed": slot.seed, "judge": judge, "record": record.as_dict()} for slot, record in records.items()]
        self._files.append("verdict", rows, rank=0)

    def write_records(self, answers: Sequence[GeneratedAnswer], records: Sequence[Record]) -> Path:
        """records.jsonl: a line an answer with what was asked, said, extracted and found."""
        rows = ({**asdict(answer), **record.as_dict()} for answer, record in zip(answers, records, strict=True))
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        return write_text(self.folder / "records.jsonl", text)


@dataclass(frozen=True, kw_only=True)
class AnswerPlan:
    """How answers are made.

    seeds, num_samples: answers a problem = their product.     new_tokens: budget of an answer.
    max_length:         of the model, prompt included; None: none known.
    rank, world_size, wait, autocast, batch_sequences: as in `generative.SamplingPlan`.
    """

    task: Task
    tokenizer: TextTokenizer
    chat: ChatFormat | None
    limit: int | None
    seeds: Sequence[int]
    num_samples: int
    new_tokens: int
    max_length: int | None
    batch_sequences: int
    rank: int = 0
    world_size: int = 1
    wait: Callable[[], object] = lambda: None
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    say: Callable[[str], None] = lambda text: None

    @property
    def problems(self) -> tuple[Problem, ...]:
        return self.task.problems[: self.limit]

    def slots(self) -> list[Slot]:
        """All answers wanted, in the order of the records."""
        return [
            Slot(seed, problem.task_id, sample)
            for seed in self.seeds
            for problem in self.problems
            for sample in range(self.num_samples)
        ]

    def prompt_ids(self) -> dict[str, list[int]]:
        """Ids of every problem's prompt; UserError where one does not fit the model."""
        assert len(self.task.problems) < _MAX_PROBLEMS
        found = {}
        for problem in self.problems:
            prompt = self.task.prompt(problem)
            if prompt.messages:
                assert self.chat is not None, "tasks of plain-text models have no messages"
                self._spell("".join([*(message["content"] for message in prompt.messages), prompt.text]))
                found[problem.task_id] = self.chat.prompt(prompt.messages, prompt.text)
            else:
                self._spell(prompt.text)
                found[problem.task_id] = self.encode(prompt.text)
        if self.task.max_prompt_tokens is not None:
            found = {name: ids[-self.task.max_prompt_tokens :] for name, ids in found.items()}
        longest = max(found, key=lambda name: len(found[name]))
        if self.max_length is not None and len(found[longest]) + self.new_tokens > self.max_length:
            room = self.max_length - len(found[longest])
            hint = f"set evaluator.new_tokens to at most {room}" if room > 0 else "it needs a model of longer texts"
            raise UserError(
                f"{self.task.name}: the prompt of {longest} has {len(found[longest])} tokens, with {self.new_tokens} "
                f"new ones more than the {self.max_length} the model takes; {hint}"
            )
        return found

    def _spell(self, text: str) -> None:
        """UserError where the tokenizer drops or changes characters."""
        if self.tokenizer.normalize(text).split() != text.split():
            raise UserError(
                f"the checkpoint's tokenizer ({type(self.tokenizer).__name__}) cannot spell {text[:30]!r}...: "
                "this task needs a model of bytes or subwords"
            )

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; where there is a chat template, the spelling of a special token stands for it."""
        return self.tokenizer.encode_batch([text])[0] if self.chat is None else self.chat.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids) if self.chat is None else self.chat.decode(ids)

    @property
    def pad_id(self) -> int:
        return self.tokenizer.eos_id if self.chat is None else self.chat.pad_id

    def answer(self, ids: Sequence[int]) -> tuple[str, int, bool]:
        """(text before the first token that ends an answer, tokens of it, whether there was such a token).

        Where turns do not end an answer of the task, only the end of a text does, and <|im_end|> is spelt out.
        """
        stop_ids = stop_ids_of(self.tokenizer, self.chat)
        if self.chat is not None and not self.task.turns_end:
            stop_ids = self.chat.text_stop_ids
        end = next((index for index, token in enumerate(ids) if token in stop_ids), None)
        own = ids if end is None else ids[:end]
        return self.decode(own), len(own), end is not None

    def row_seed(self, slot: Slot, numbers: Mapping[str, int]) -> int:
        """A function of seed, problem and sample alone: neither limit nor counts, batches nor ranks change a text."""
        return row_seed(slot.seed, slot.sample * _MAX_PROBLEMS + numbers[slot.task_id])


def make_answers(store: AnswerStore, sampler: Sampler, plan: AnswerPlan, *, label: str) -> int:
    """Make this rank's share of the answers that are not there yet; how many it made."""
    there = store.answers()
    prompts = plan.prompt_ids()
    numbers = {problem.task_id: number for number, problem in enumerate(plan.task.problems)}
    mine = [slot for slot in plan.slots()[plan.rank :: plan.world_size] if slot not in there]
    mine.sort(key=lambda slot: -len(prompts[slot.task_id]))  # neighbours of one length waste least padding
    began = time.monotonic()
    for start in range(0, len(mine), plan.batch_sequences):
        slots = mine[start : start + plan.batch_sequences]
        with plan.autocast():
            rows = _sample(sampler, plan, slots, prompts, numbers)
        store.append(rows, rank=plan.rank)
        done, passed = start + len(slots), time.monotonic() - began
        share = f" of rank {plan.rank}'s" if plan.world_size > 1 else ""
        left = passed / done * (len(mine) - done)
        plan.say(f"{label}: {done}/{len(mine)}{share} answers, {passed:.0f} s, about {left:.0f} s left")
    return len(mine)


def _sample(
    sampler: Sampler,
    plan: AnswerPlan,
    slots: Sequence[Slot],
    prompts: Mapping[str, list[int]],
    numbers: Mapping[str, int],
) -> list[GeneratedAnswer]:
    began = time.perf_counter()
    canvas = from_prompts(
        [prompts[slot.task_id] for slot in slots],
        new_tokens=plan.new_tokens,
        mask_id=sampler.predictor.mask_id,
        pad_id=plan.pad_id,
        device=next(sampler.predictor.parameters()).device,
    )
    noise = RowNoise([plan.row_seed(slot, numbers) for slot in slots], canvas.positions_BL)
    out = sampler.sample(canvas, noise)
    rows, spent = canvas.texts(out.ids_BL), out.nfe_B.tolist()  # waits for the device
    seconds = (time.perf_counter() - began) / len(slots)
    made = []
    for slot, ids, nfe in zip(slots, rows, spent, strict=True):
        prompt = prompts[slot.task_id]
        text, num_tokens, ended = plan.answer(ids[len(prompt) :])
        ended = ended or truncate_at(text, plan.task.stops)[1] is not None
        made.append(
            GeneratedAnswer(
                slot.task_id, slot.sample, slot.seed, plan.decode(prompt), text, num_tokens, nfe, not ended,
                round(seconds, 4),
            )
        )  # fmt: skip
    return made


def judged(store: AnswerStore, plan: AnswerPlan, executor: Executor | None, judge: str) -> Iterator[str]:
    """Judge what has no verdict yet, a chunk at a time; yields a line of progress after each."""
    answers, there = store.answers(), store.verdicts(judge)
    missing = [answers[slot] for slot in plan.slots() if slot not in there]
    for start in range(0, len(missing), _CHUNK):
        part = missing[start : start + _CHUNK]
        records = judge_answers(plan.task, [as_answer(answer) for answer in part], executor)
        numbered = {
            answer.slot: Record(**{**record.as_dict(), "sample": answer.sample})
            for answer, record in zip(part, records, strict=True)
        }
        store.append_verdicts(numbered, judge)
        yield f"{start + len(part)}/{len(missing)} answers judged"


def as_answer(answer: GeneratedAnswer) -> Answer:
    return Answer(answer.task_id, answer.completion, answer.truncated)
