"""The judge: executes the tests of a problem against a program that lives in another process.

Standard library only; runs inside the supervisor's fork, itself confined. See `rpc` for what crosses and why
the verdict cannot be forged.
"""

from __future__ import annotations

import builtins
import contextlib
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sm_diffusion.evaluation.execution.rpc import Channel, ChannelError, decode, encode
else:
    from rpc import Channel, ChannelError, decode, encode

_MAX_DETAIL = 400  # characters


class ProgramError(Exception):
    """The program raised something that is not a builtin exception."""


class _Client:
    """Asks the program's process. Remembers the last exception it sent, to tell its faults from the tests'."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.raised: BaseException | None = None
        self.raised_name = ""

    def refer(self, value: Any) -> Any:
        if type(value) is Remote:
            return ["h", object.__getattribute__(value, "_index")]
        name = value.__name__ if isinstance(value, type(len)) else ""
        if name and vars(builtins).get(name) is value:
            return ["T", name]
        raise TypeError(f"a {type(value).__name__} of the tests cannot be passed to the program")

    def resolve(self, key: Any) -> Any:
        if type(key) is int:
            return Remote(self, key)
        kind = vars(builtins).get(key)
        if not isinstance(kind, type):
            raise ValueError("not a reference")
        return kind

    def request(self, message: dict[str, Any]) -> Any:
        """Send a request, return the decoded answer, or raise what the program raised."""
        self.channel.send(message)
        reply = self.channel.receive()
        try:
            if "error" in reply:
                self._raise(str(reply["error"]), str(reply["message"]))
            return decode(reply["value"], self.resolve), reply.get("changed", {})
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            if error is self.raised:
                raise
            self.channel.dead = True
            raise ChannelError("an answer that is not in the protocol") from None

    def _raise(self, name: str, message: str) -> None:
        kind = vars(builtins).get(name)
        self.raised, self.raised_name = ProgramError(f"{name}: {message}"), name
        if isinstance(kind, type) and issubclass(kind, Exception):
            with contextlib.suppress(TypeError):  # UnicodeDecodeError and ExceptionGroup need more than a message
                self.raised = kind(message)
        raise self.raised

    def act(self, action: str, index: int, args: tuple[Any, ...] = (), keywords: dict[str, Any] | None = None) -> Any:
        message = {
            "do": action,
            "target": index,
            "args": [encode(arg, self.refer) for arg in args],
            "keywords": {key: encode(value, self.refer) for key, value in (keywords or {}).items()},
        }
        value, changed = self.request(message)
        for position, form in dict(changed).items():
            _write_back(args[int(position)], decode(form, self.resolve))
        return value


def _write_back(original: Any, changed: Any) -> None:
    """Give the test's own list, dict or set the contents the call left in its copy."""
    if type(original) is not type(changed):
        return
    if type(original) is list:
        original[:] = changed
    elif type(original) in (dict, set):
        original.clear()
        original.update(changed)


class Remote:
    """An object that stays in the program's process. Equal to nothing but itself; never compared over there."""

    __slots__ = ("_client", "_index")

    def __init__(self, client: _Client, index: int) -> None:
        object.__setattr__(self, "_client", client)
        object.__setattr__(self, "_index", index)

    def _act(self, action: str, *args: Any, **keywords: Any) -> Any:
        client: _Client = object.__getattribute__(self, "_client")
        return client.act(action, object.__getattribute__(self, "_index"), args, keywords)

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        return self._act("call", *args, **keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._act("get", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._act("set", name, value)

    def __iter__(self) -> Any:
        return self._act("iter")

    def __next__(self) -> Any:
        return self._act("next")

    def __getitem__(self, key: Any) -> Any:
        return self._act("item", key)

    def __len__(self) -> int:
        return int(self._act("len"))

    def __bool__(self) -> bool:
        return True


def _describe(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}"[:_MAX_DETAIL].split())


def _failed_line(error: BaseException, code: str) -> str:
    """The line of the tests where the exception passed, for a report."""
    trace, number = error.__traceback__, 0
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "tests.py":
            number = trace.tb_lineno
        trace = trace.tb_next
    lines = code.splitlines()
    return f" in `{lines[number - 1].strip()[:200]}`" if 0 < number <= len(lines) else ""


def judge(fd: int, job: dict[str, Any]) -> tuple[str, str]:
    """Run `job["source"]` over `fd` against `job["code"]`. Returns (status, one line of detail).

    Statuses: passed, failed (a test did not hold), exception (the program raised), memory (it raised MemoryError),
    exited (its process ended, or broke the protocol).
    """
    channel = Channel(fd)
    client = _Client(channel)
    namespace: dict[str, Any] = {"__name__": "tests", "__builtins__": builtins}
    try:
        client.request({"source": job["source"], "path": job["path"]})
        exec(compile(job["preamble"], "preamble.py", "exec"), namespace)
        for name in job["names"]:
            namespace[name] = client.request({"do": "name", "name": name})[0]
        if "random" in job["code"]:
            import random

            random.seed(0)
        sys.path.extend(job["path"])
        exec(compile(job["code"], "tests.py", "exec"), namespace)
    except ChannelError as error:
        return "exited", str(error)
    except BaseException as error:  # whatever the tests let through is a failure
        if channel.dead:
            return "exited", "the program's process ended"
        where = _failed_line(error, job["code"])
        if error is not client.raised:
            return "failed", _describe(error) + where
        if client.raised_name == "MemoryError":
            return "memory", "MemoryError" + where
        return "exception", _describe(error) + where
    return ("exited", "the program's process ended") if channel.dead else ("passed", "")
