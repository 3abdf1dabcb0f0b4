"""Two processes and a pipe: the judged program in one, the tests and every comparison in the other.

The program (`serve`) executes the untrusted code and answers requests: call this function with these arguments. The
judge (`judge`) executes the tests with stand-ins for the program's functions. Only plain values cross, as data, in a
frame of 8 length bytes and JSON:

    None, bool, int, float, complex, str, bytes, list, tuple, set, frozenset, dict, range, Decimal, Fraction, deque,
    and builtin types by name (towards the program also builtin functions). Subclasses arrive as their base: a value
    with its own `__eq__` cannot cross. Anything else (an instance of the program's class, a generator) stays where it
    is and crosses as a number; the judge holds a `Remote`, whose attributes, calls and items are asked for one by one
    and which equals nothing but itself.

So `assert`, `==` and the expected values live in a process the program can neither read nor influence, and the only
way to pass is to return values that pass. Changes a call makes to its list, dict and set arguments are written back.

Run as a script this file is the program's side. Standard library only.
"""

from __future__ import annotations

import builtins
import json
import os
import sys
from collections.abc import Callable
from typing import Any

MAX_FRAME_BYTES = 16 * 1024 * 1024
_SEQUENCES: dict[str, Any] = {"l": list, "t": tuple, "S": set, "F": frozenset}
_BUILTIN_TYPES = {value: name for name, value in vars(builtins).items() if isinstance(value, type)}


class ChannelError(Exception):
    """The other process is gone or sent something that is not a frame."""


class Channel:
    """Frames over a socket. `dead` stays True after the first failure, so that a test cannot swallow it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.dead = False

    def _read(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            part = os.read(self.fd, min(size, 1 << 20))
            if not part:
                raise ChannelError("the program's process ended before it answered")
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def receive(self) -> Any:
        """Next frame. Raises ChannelError when there is none, it is too large, or it is no JSON."""
        try:
            size = int.from_bytes(self._read(8), "big")
            if size > MAX_FRAME_BYTES:
                raise ChannelError(f"an answer of {size} bytes; at most {MAX_FRAME_BYTES} cross")
            return json.loads(self._read(size))
        except (OSError, ValueError, RecursionError, MemoryError) as error:
            self.dead = True
            raise ChannelError(f"unreadable answer: {type(error).__name__}") from None
        except ChannelError:
            self.dead = True
            raise

    def send(self, message: Any) -> None:
        """Write one frame. Raises ChannelError when the other side is gone or the frame too large."""
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > MAX_FRAME_BYTES:
            raise OverflowError(f"a value of {len(data)} bytes; at most {MAX_FRAME_BYTES} cross")
        view = memoryview(len(data).to_bytes(8, "big") + data)
        try:
            while view:
                view = view[os.write(self.fd, view) :]
        except OSError:
            self.dead = True
            raise ChannelError("the program's process ended before it was asked") from None


def encode(value: Any, refer: Callable[[Any], Any]) -> Any:
    """JSON form of a value; `refer` gives the form of what is no plain value. Plain types only, subclasses decay."""
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return value if type(value) is str else str.__add__("", value)
    if isinstance(value, int):
        return ["i", format(int(value), "x")] if abs(value) >= 1 << 53 else int(value)
    if isinstance(value, float):
        return ["f", float.hex(value)]
    if isinstance(value, complex):
        return ["c", value.real.hex(), value.imag.hex()]
    if isinstance(value, bytes):
        return ["b", value.hex()]
    for tag, kind in _SEQUENCES.items():
        if isinstance(value, kind):
            return [tag, *(encode(item, refer) for item in kind.__iter__(value))]
    if isinstance(value, dict):
        return ["d", *(encode(part, refer) for item in dict.items(value) for part in item)]
    if isinstance(value, range):
        return ["r", *(encode(part, refer) for part in (value.start, value.stop, value.step))]
    kind_name = f"{type(value).__module__}.{type(value).__qualname__}"
    if kind_name in ("decimal.Decimal", "fractions.Fraction"):
        return ["x", kind_name, str(value)]
    if kind_name == "collections.deque":
        return ["x", kind_name, ["l", *(encode(item, refer) for item in value)]]
    if type(value).__module__ == "numpy" and isinstance(value, sys.modules["numpy"].generic):
        return encode(value.item(), refer)
    if type(value) is type and value in _BUILTIN_TYPES:
        return ["T", _BUILTIN_TYPES[value]]
    return refer(value)


def decode(form: Any, resolve: Callable[[Any], Any]) -> Any:
    """Value of a JSON form. Builds plain values only; `resolve` turns a reference into an object.

    Raises ValueError for a form that `encode` does not make.
    """
    if form is None or isinstance(form, (bool, int, str)):
        return form
    if not isinstance(form, list) or not form:
        raise ValueError("not an encoded value")
    tag, parts = form[0], form[1:]
    if tag == "i":
        return int(parts[0], 16)
    if tag == "f":
        return float.fromhex(parts[0])
    if tag == "c":
        return complex(float.fromhex(parts[0]), float.fromhex(parts[1]))
    if tag == "b":
        return bytes.fromhex(parts[0])
    if tag in _SEQUENCES:
        return _SEQUENCES[tag](decode(part, resolve) for part in parts)
    if tag == "d":
        values = [decode(part, resolve) for part in parts]
        return dict(zip(values[::2], values[1::2], strict=True))
    if tag == "r":
        return range(*(decode(part, resolve) for part in parts))
    if tag == "x":
        return _decode_special(parts[0], decode(parts[1], resolve))
    if tag in ("T", "h"):  # a builtin by name, an object of the program by number
        return resolve(parts[0])
    raise ValueError(f"unknown tag {tag!r}")


def _decode_special(kind: str, payload: Any) -> Any:
    if kind == "decimal.Decimal":
        from decimal import Decimal

        return Decimal(payload)
    if kind == "fractions.Fraction":
        from fractions import Fraction

        return Fraction(payload)
    if kind == "collections.deque":
        from collections import deque

        return deque(payload)
    raise ValueError(f"unknown kind {kind!r}")


# ---------------------------------------------------------------------------------------------- the program's side


class _Program:
    """Executes the untrusted code and answers requests about it."""

    def __init__(self) -> None:
        self.objects: list[Any] = []

    def refer(self, value: Any) -> Any:
        self.objects.append(value)
        return ["h", len(self.objects) - 1]

    def resolve(self, key: Any) -> Any:
        return vars(builtins)[key] if isinstance(key, str) else self.objects[key]

    def load(self, source: str) -> None:
        """Execute the code as a module named `solution`, so that `if __name__ == "__main__"` does not run."""
        module = type(sys)("solution")
        sys.modules["solution"] = module
        self.namespace = vars(module)
        exec(compile(source, "solution.py", "exec"), self.namespace)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """One request: {"do": "name" | "call" | "get" | "set" | "iter" | "next" | "item" | "len", ...}."""
        action = request["do"]
        if action == "name":
            if request["name"] not in self.namespace:
                raise NameError(f"the program defines no `{request['name']}`")
            return {"value": encode(self.namespace[request["name"]], self.refer)}
        target = self.resolve(request["target"])
        forms = request["args"]
        args = [decode(form, self.resolve) for form in forms]
        keywords = {key: decode(form, self.resolve) for key, form in request["keywords"].items()}
        actions: dict[str, Callable[..., Any]] = {
            "call": target, "get": getattr, "set": setattr, "iter": iter, "next": next, "len": len,
            "item": lambda box, key: box[key],
        }  # fmt: skip
        value = target(*args, **keywords) if action == "call" else actions[action](target, *args)
        reply = {"value": encode(value, self.refer)}
        mutable = [index for index, arg in enumerate(args) if type(arg) in (list, dict, set)]
        after = {index: encode(args[index], self.refer) for index in mutable}
        changed = {str(index): form for index, form in after.items() if form != forms[index]}
        return {**reply, "changed": changed} if changed else reply


def serve(fd: int) -> None:
    """The program's process: a first frame with the source, then requests until the judge hangs up."""
    channel, program = Channel(fd), _Program()
    while True:
        try:
            request = channel.receive()
        except ChannelError:
            os._exit(0)
        reply: dict[str, Any]
        try:
            if "source" in request:
                sys.path.extend(request["path"])
                program.load(request["source"])
                reply = {"value": None}
            else:
                reply = program.answer(request)
        except BaseException as error:  # SystemExit included: whatever the program raises is an answer
            reply = {"error": type(error).__name__, "message": _message(error)}
        try:
            print(end="", flush=True)
            channel.send(reply)
        except ChannelError:
            os._exit(0)
        except Exception as error:  # too large, not encodable, or an output stream the program replaced
            channel.send({"error": type(error).__name__, "message": _message(error)})


def _message(error: BaseException) -> str:
    try:
        return str(error)[:300]
    except BaseException:
        return ""


if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]
    serve(int(sys.argv[1]))
