"""`smd chat`: what it prints through a pipe, what it remembers, what it refuses."""

from __future__ import annotations

import argparse
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest

import sm_diffusion
from sm_diffusion.app.commands import talk as talking
from sm_diffusion.cli import chat
from sm_diffusion.cli import main as cli
from sm_diffusion.cli.main import command_parser
from sm_diffusion.types import UserError
from tests.helpers.templates import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return sm_diffusion.load(folder)


@pytest.fixture
def loaded(model: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command opens this model, whatever it is told to open."""
    monkeypatch.setattr("sm_diffusion.app.open_model.load", lambda *_: model)
    return model


def options(*extra: str) -> argparse.Namespace:
    return command_parser("chat", chat).parse_args(["model", "--length", "8", "--steps", "2", *extra])


def talk(model: Any, *extra: str) -> talking.Talk:
    return talking.Talk(model, chat.settings_of(options(*extra)))


def pipe(monkeypatch: pytest.MonkeyPatch, text: str, *extra: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return cli.main(["chat", "model", "--length", "8", "--steps", "2", *extra])


def test_through_a_pipe(loaded: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    assert pipe(monkeypatch, "hello\n\n/reset\nhello\n/dance\n/exit\nnever\n") == 0
    out, err = capfd.readouterr()
    assert err == (f"(the conversation starts anew)\n(/dance: no such command; {talking.COMMANDS})\n")
    first = talk(loaded).answer("hello")
    assert out == f"{first}\n{first}\n", "a conversation that starts anew repeats itself"
    assert talk(loaded, "--seed", "2", "--temperature", "1").answer("hello") != first


def test_earlier_turns_are_the_prompt(model: Any) -> None:
    one = talk(model, "--system", "be brief")
    first = one.answer("hello")
    seen: list[Any] = []
    face = model.chat
    original = face.prompt

    def prompt(messages: Any) -> list[int]:
        seen.append([dict(message) for message in messages])
        return original(messages)

    face.prompt = prompt
    try:
        one.answer("more")
    finally:
        del face.prompt
    roles = [(message["role"], message["content"]) for message in seen[0]]
    assert roles[:2] == [("system", "be brief"), ("user", "hello")]
    assert roles[2][0] == "assistant"
    assert roles[2][1].strip("\n") == first
    assert roles[3:] == [("user", "more")]


def test_the_oldest_turns_are_forgotten_with_a_word(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    one = talk(dataclasses.replace(model, length=90), "--length", "4")
    one.answer("a" * 10)
    one.answer("b" * 10)
    assert capsys.readouterr().err == ""
    one.answer("c" * 10)
    assert "exchanges are forgotten: 86 tokens are the limit" in capsys.readouterr().err
    assert [turn["content"][:1] for turn in one.turns if turn["role"] == "user"][-1] == "c"
    assert not any(turn["content"].startswith("aaa") for turn in one.turns)
    with pytest.raises(UserError, match=r"the message has \d+ tokens with its template, 86 are left"):
        one.answer("d" * 100)
    assert one.turns, "a message that does not fit changes nothing"


def test_denoising_is_shown_if_asked(
    loaded: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert pipe(monkeypatch, "hello\n", "--show-denoising") == 0
    out, err = capfd.readouterr()
    lines = err.splitlines()
    left = [int(line.split(" masks left")[0].split()[-1]) for line in lines]
    assert (len(left), left[0], left[-1]) == (3, 8, 0)
    assert 0 < left[1] < 8
    assert "░░░░░░░░" in lines[0]
    assert "hello" not in err, "the prompt is not shown again"
    assert out == talk(loaded).answer("hello") + "\n"


def test_a_model_of_plain_text_goes_on_from_each_message(
    model: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    silent = dataclasses.replace(model, chat=None)
    one = talk(silent)
    one.answer("hello")
    assert one.turns == []
    monkeypatch.setattr("sm_diffusion.app.open_model.load", lambda *_: silent)
    assert pipe(monkeypatch, "hello\n", "--system", "be brief") == 2
    assert capfd.readouterr().err == (
        "error: --system: the model has no chat template (it was trained on plain text); leave it out\n"
    )


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--length", "128"], "--length 128: the model takes 128 tokens, the conversation included: give 1 to 127"),
        (["--length", "0"], "--length 0: the model takes 128"),
        (["--nfe", "0"], "--nfe 0: must be > 0"),
        (["--nfe", "0.5"], "--steps 2 --nfe 0.5: give one of them"),
        (["--sampler", "nope"], "sampler/nope"),
        (["--temperature", "-1"], "sampler.temperature=-1.0"),
    ],
)
def test_bad_options_are_one_line(
    loaded: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    assert pipe(monkeypatch, "hello\n", *extra) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_terminal_is_not_told_what_a_model_writes() -> None:
    assert talking.printable("a\x1b[2Jb\x07\n\tc é") == "a\N{REPLACEMENT CHARACTER}[2Jb\N{REPLACEMENT CHARACTER}\n\tc é"


def test_unknown_checkpoint(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n"))
    assert cli.main(["chat", "runs/gone.ckpt"]) == 2
    error = capfd.readouterr().err
    assert error.startswith("error: runs/gone.ckpt: no such file or folder")
    assert error.count("\n") == 1
