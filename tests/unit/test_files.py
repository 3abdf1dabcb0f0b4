"""Files are whole or absent whatever happens; what cannot be written or read is one line; one module does it all."""

from __future__ import annotations

import ast
import errno
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import save_file

from sm_diffusion import files
from sm_diffusion.types import UserError

PACKAGE = Path(files.__file__).parent
OPERATIONS = {
    *("os.fsync", "shutil.move", "tempfile.mkdtemp", "tempfile.mkstemp", "tempfile.NamedTemporaryFile"),
}
REASONS = {
    "denoisers/pretrained/loading.py: .rename": "gives tensors their names here, no file",
    "data/corpora/filters.py: hashlib.blake2b": "eight bytes a document, to find near duplicates",
    "data/stores/shard_writer.py: hashlib.sha256": "grows while the shard is written, which is not read again",
    "data/stores/cache.py: tempfile.mkdtemp": "a folder to build a cache in; `files.swap` puts it in its place",
    "evaluation/execution/executor.py: tempfile.mkdtemp": "the working folder of a program that is judged",
}


# ---------------------------------------------------------------------------------------------------------- one place


def file_operations(path: Path) -> Iterator[str]:
    """What a module names that renames, flushes or hashes files."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if node.value.id == "hashlib" or name in OPERATIONS:
                yield name
        if isinstance(node, ast.ImportFrom) and node.module in ("hashlib", "shutil", "os"):
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name != "PathLike")
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            # text.replace takes two arguments, path.replace one
            in_os = isinstance(node.func.value, ast.Name) and node.func.value.id == "os"
            if node.func.attr in ("rename", "renames") or (
                node.func.attr == "replace" and (in_os or (len(node.args) == 1 and not node.keywords))
            ):
                yield f".{node.func.attr}"


def test_one_module_writes_and_renames() -> None:
    found = {
        f"{name}: {operation}"
        for path in PACKAGE.rglob("*.py")
        if (name := path.relative_to(PACKAGE).as_posix()) != "files.py"
        for operation in file_operations(path)
    }
    assert sorted(found) == sorted(REASONS)


def test_it_stands_on_nothing_but_types_and_the_standard_library() -> None:
    for node in ast.walk(ast.parse((PACKAGE / "files.py").read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name == "sm_diffusion.types" or name.split(".")[0] in sys.stdlib_module_names


# ------------------------------------------------------------------------------------------------------------- writing


def stage(path: Path, value: str) -> Path:
    with files.staged(path) as part:
        part.write_text(json.dumps({"value": value}))
    return path


WRITERS: dict[str, Callable[[Path, str], Path]] = {
    "whole": lambda path, value: files.write_whole(path, lambda t: t.write_text(json.dumps({"value": value}))),
    "text": lambda path, value: files.write_text(path, json.dumps({"value": value})),
    "json": lambda path, value: files.write_json(path, {"value": value}),
    "staged": stage,
}
FAILURES = [errno.ENOSPC, errno.EROFS, errno.EDQUOT]


@pytest.mark.parametrize("operation", ["write", "fsync", "replace"])
@pytest.mark.parametrize("number", FAILURES, ids=[errno.errorcode[number] for number in FAILURES])
@pytest.mark.parametrize("name", WRITERS)
def test_what_a_disk_refuses_is_one_line_and_the_old_file_survives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int, operation: str
) -> None:
    path = WRITERS[name](tmp_path / "a.json", "old")

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    if operation == "write":
        monkeypatch.setattr(Path, "write_text", refuse)
        monkeypatch.setattr(Path, "write_bytes", refuse)
    else:
        monkeypatch.setattr(os, operation, refuse)
    with pytest.raises(UserError, match=rf"a\.json: cannot be written \({os.strerror(number)}\); free space") as error:
        WRITERS[name](path, "new")
    monkeypatch.undo()
    assert "\n" not in str(error.value)
    assert files.read_json(path) == {"value": "old"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("name", WRITERS)
def test_missing_folders_are_made_and_a_file_in_their_place_is_one_line(tmp_path: Path, name: str) -> None:
    assert files.read_json(WRITERS[name](tmp_path / "new" / "er" / "a.json", "x")) == {"value": "x"}
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/below/a\.json: cannot be written"):
        WRITERS[name](tmp_path / "file" / "below" / "a.json", "x")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_without_the_right_to_write(tmp_path: Path, name: str) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(UserError, match=r"a\.json: cannot be written \(Permission denied\)"):
            WRITERS[name](tmp_path / "a.json", "x")
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disks_that_libraries_put_in_their_own_words() -> None:
    def saved_by_torch() -> None:
        with open("/dev/full", "wb") as file:
            torch.save({"a": torch.zeros(10_000)}, file)

    for write in (saved_by_torch, lambda: save_file({"a": torch.zeros(10_000)}, "/dev/full/x")):
        with pytest.raises(UserError, match=r"^out: cannot be written \((No space|Not a directory)"):  # noqa: SIM117
            with files.cannot_write(Path("out")):
                write()


def test_errors_that_are_not_of_writing_pass(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mine"), files.staged(tmp_path / "out"):
        raise UserError("mine")
    with pytest.raises(FileNotFoundError, match="source"), files.staged(tmp_path / "out"):
        (Path("/nowhere") / "source").read_bytes()
    with pytest.raises(KeyError):
        files.write_whole(tmp_path / "out", lambda _: {}["x"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["write_whole", "staged"])
def test_a_writer_killed_midway_leaves_nothing_under_the_name(tmp_path: Path, name: str) -> None:
    program = f"""
import os, signal
from pathlib import Path
from sm_diffusion import files
def half(path):
    with path.open("w", encoding="utf-8") as file:
        file.write("half"); file.flush(); os.fsync(file.fileno())
        os.kill(os.getpid(), signal.SIGKILL)
out = Path({str(tmp_path / "out")!r})
if {name!r} == "staged":
    with files.staged(out) as part:
        half(part)
else:
    files.write_whole(out, half)
"""
    done = subprocess.run([sys.executable, "-c", program], check=False, cwd=PACKAGE.parent, timeout=120)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".out.")
    if name == "write_whole":
        files.remove_temporary(tmp_path)
    else:
        with files.staged(tmp_path / "out") as part:
            part.write_text("whole")
        (tmp_path / "out").unlink()
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_output_is_absent_and_a_finished_one_whole(tmp_path: Path) -> None:
    out = tmp_path / "new" / "full"
    with pytest.raises(KeyboardInterrupt), files.staged(out) as part:
        part.mkdir()
        (part / "half").write_text("x")
        raise KeyboardInterrupt
    assert list(out.parent.iterdir()) == []
    out.mkdir()
    with files.staged(out) as part:
        part.mkdir()
        assert not any(out.iterdir())
        (part / "whole").write_text("x")
    assert [path.name for path in out.iterdir()] == ["whole"]
    assert list(out.parent.iterdir()) == [out]
    with pytest.raises(UserError, match=r"full: cannot be written \(Directory not empty\)"), files.staged(out) as part:
        part.mkdir()
    assert [path.name for path in out.iterdir()] == ["whole"]


@pytest.mark.parametrize("old", ["file", "folder", None])
@pytest.mark.parametrize("new", ["file", "folder"])
def test_swap_puts_either_in_the_place_of_either(tmp_path: Path, old: str | None, new: str) -> None:
    def make(path: Path, kind: str | None) -> None:
        if kind == "folder":
            path.mkdir()
            (path / "inside").write_text(path.name)
        elif kind == "file":
            path.write_text(path.name)

    make(tmp_path / "there", old)
    make(tmp_path / "new", new)
    make(tmp_path / "aside", "folder")  # of a swap that was killed
    files.swap(tmp_path / "new", tmp_path / "there", aside=tmp_path / "aside")
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
    place = tmp_path / "there"
    assert (place / "inside" if new == "folder" else place).read_text() == "new"


def test_links_are_deleted_not_what_they_point_to(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    files.delete(tmp_path / "link")
    files.delete(tmp_path / "nothing")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


# ---------------------------------------------------------------------------------------------------------------- JSON

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


HALVES = st.characters(categories=["Cs"])  # of surrogate pairs; two that fit become one character, as in every JSON


@given(TREES | HALVES)
def test_json_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, tree: Any) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.json"
    files.write_json(path, tree)
    assert files.read_json(path) == tree


@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
@example(b"")
@example(b"[" * 200_000)
@example(b'{"a":' * 100_000)
@example(b"9" * 4_400)
@example(b'{"n": -' + b"1" * 5_000 + b"}")
@example(b"\xff\xfe{}")
@example(b"\xef\xbb\xbf{}")
@example(b'"\xed\xa0\x80"')
@example(b"{\n\n")
@example(b"\x00")
@example(b'{"a": 1}trailing\nlines')
def test_any_bytes_are_json_or_one_line_that_names_the_file(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile.json"
    path.write_bytes(content)
    try:
        message = f"{path}: {type(files.read_object(path))}"
    except UserError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 250


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # opening it would wait forever
    for name, words in {"gone": "no such file", "": "not a file", "pipe": "not a file"}.items():
        with pytest.raises(UserError, match=words):
            files.read_json(tmp_path / name)
    for name, words in {"gone": "No such file", "": "Is a directory"}.items():
        with pytest.raises(UserError, match=rf"cannot be read \({words}"):
            files.sha256_of(tmp_path / name)


def test_numbers_that_json_has_not_become_words(tmp_path: Path) -> None:
    path = files.write_json(tmp_path / "x", {"nan": math.nan, "inf": -math.inf, "n": np.int64(3), "x": np.float32(0.5)})
    assert files.read_json(path) == {"nan": "nan", "inf": "-inf", "n": 3, "x": 0.5}
    with pytest.raises(TypeError, match="object"):
        files.write_json(path, {"a": object()})


# ------------------------------------------------------------------------------------------------------------- digests


def test_digests_are_sha256(tmp_path: Path) -> None:
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    (tmp_path / "f").write_bytes(b"abc")
    assert files.sha256_of(tmp_path / "f") == files.digest("abc") == files.digest("a", b"b", "c") == known
    assert files.digest_bytes("abc") == bytes.fromhex(known)
    assert files.key_digest({"a": 1, "b": 2}) == files.key_digest({"b": 2, "a": 1})


# ------------------------------------------------------------------------------------------------------- keyed folders


def opened(folder: Path, **key: Any) -> files.KeyedFolder:
    return files.KeyedFolder(folder, {"seed": 1, "sampler": {"steps": 8}} | key, setting="dir", what="samples")


def test_a_keyed_folder_keeps_whole_lines_of_one_key(tmp_path: Path) -> None:
    rows = [{"text": "ä\nb"}, {"text": "\ud800 half a pair"}]
    opened(tmp_path).append("part", rows, rank=0)
    with (tmp_path / "part-00000.jsonl").open("ab") as file:
        file.write(b'{"text": "to')  # killed here
    assert list(opened(tmp_path).lines("part")) == rows
    opened(tmp_path).append("part", [{"text": "next"}], rank=0)
    opened(tmp_path).append("part", [{"text": "other rank"}], rank=1)
    assert list(opened(tmp_path).lines("part")) == [*rows, {"text": "next"}, {"text": "other rank"}]
    with pytest.raises(UserError, match=r"dir=.*: holds samples of another sampler\.steps \(8 there, 9 here\)"):
        opened(tmp_path, sampler={"steps": 9})


@pytest.mark.parametrize("line", ["{", "[]", "9" * 4_400, "[" * 100_000], ids=["cut", "list", "digits", "nested"])
def test_a_damaged_line_names_its_file(tmp_path: Path, line: str) -> None:
    folder = opened(tmp_path)
    (tmp_path / "part-00000.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"part-00000\.jsonl: damaged; delete it to have its parts made again"):
        list(folder.lines("part"))


def test_a_full_disk_keeps_the_lines_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = opened(tmp_path)
    folder.append("part", [{"text": "old"}], rank=0)

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(UserError, match=r"part-00000\.jsonl: cannot be written \(No space left on device\)"):
        folder.append("part", [{"text": "new"}], rank=0)
    assert next(folder.lines("part")) == {"text": "old"}
