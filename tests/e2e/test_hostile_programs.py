"""Hostile programs: each ends within its limits, fails, touches nothing outside its folder and leaves no process.

Every program defines `target`, and the tests ask `target(2) == 4`. None of the programs computes that; all of them try
to pass, to break out, or to wear the machine down. They run with all mechanisms this machine has, and, where the tests
run as root and the machine has what it takes, as an ordinary user with and without namespaces.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sm_diffusion.evaluation.execution import executor as code_exec
from sm_diffusion.evaluation.execution.executor import Checks, Executor
from sm_diffusion.evaluation.execution.limits import ExecutionLimits
from sm_diffusion.types import UserError

LIMITS = ExecutionLimits(cpu_seconds=10, wall_seconds=30, memory_mb=300, file_mb=4, max_processes=8, output_kb=256)
TIGHT = replace(LIMITS, cpu_seconds=1, wall_seconds=2)  # for programs that are meant to run into the limit
CHECKS = Checks(code="assert target(2) == 4\nassert target(3) == 6", names=("target",))
ORDINARY_UID = 41_234
SECRET = "parent-secret-3141592653"

HOSTILE = {
    "infinite loop": ("def target(x):\n while True: pass", {"timeout"}),
    "sleep": ("import time\ndef target(x): time.sleep(1000)", {"timeout"}),
    "ignored signals": (
        "import signal\nfor s in range(1, 65):\n try: signal.signal(s, signal.SIG_IGN)\n"
        " except (OSError, ValueError): pass"
        "\ndef target(x):\n while True: pass",
        {"timeout"},
    ),
    "fork bomb": (
        "import os\ndef target(x):\n while True:\n  try: os.fork()\n  except OSError: pass",
        {"timeout", "exited"},
    ),
    "thread bomb": (
        "import threading, time\ndef target(x):\n while True: threading.Thread(target=time.sleep, args=(99,)).start()",
        {"exception", "timeout"},
    ),
    "memory hog": ("def target(x):\n a = []\n while True: a.append(bytearray(1 << 20))", {"memory"}),
    "memory hog at once": ("a = 'x' * (1 << 40)\ndef target(x): return a", {"memory"}),
    "os._exit(0)": ("import os\nos._exit(0)", {"exited"}),
    "os._exit(0) in the call": ("import os\ndef target(x): os._exit(0)", {"exited"}),
    "sys.exit(0)": ("import sys\nsys.exit(0)", {"exception"}),
    "sys.exit(0) in the call": ("import sys\ndef target(x): sys.exit(0)", {"exception"}),
    "kill itself": ("import os\ndef target(x): os.kill(os.getpid(), 9)", {"exited", "timeout"}),
    "patched builtins": (
        "import builtins, unittest\nclass Quiet(Exception): pass\nbuiltins.AssertionError = Quiet\n"
        "for n in ('all', 'any', 'isinstance', 'callable'): setattr(builtins, n, lambda *a: True)\n"
        "builtins.compile = builtins.exec = lambda *a, **k: None\nunittest.TestCase.assertEqual = lambda *a: None\n"
        "def check(candidate): pass\ndef target(x): return 5",
        {"failed", "exited", "exception"},
    ),
    "equal to everything": (
        "class Any(int):\n __eq__ = lambda s, o: True\n __ne__ = lambda s, o: False\n __bool__ = lambda s: True\n"
        " __hash__ = int.__hash__\nclass Thing:\n __eq__ = lambda s, o: True\n __class__ = int\n"
        "def target(x): return Any(5) if x == 2 else Thing()",
        {"failed"},
    ),
    "an object equal to everything": (
        "class Thing:\n __eq__ = lambda s, o: True\ndef target(x): return Thing()",
        {"failed"},
    ),
    "patched harness": (
        "import sys\nm = sys.modules['__main__']\n"
        "m.encode = lambda v, r: True\nm._Program.answer = lambda s, q: {'value': True, 'status': 'passed'}\n"
        "m.Channel.send = lambda s, v: None\nm.serve = None\ndef target(x): return 5",
        {"failed", "timeout"},
    ),
    "frames and garbage": (
        "import gc, sys\ndef target(x):\n f = sys._getframe()\n seen = []\n"
        " while f: seen.append(repr(f.f_locals)); f = f.f_back\n"
        " seen += [repr(o)[:10000] for o in gc.get_objects() if isinstance(o, (dict, list))]\n"
        " text = ' '.join(seen)\n return 4 if x == 2 and 'assert target(2) == 4' in text else 5",
        {"failed"},
    ),
    "forged verdict on every descriptor": (
        "import os\ndef target(x):\n"
        " for fd in range(64):\n  for line in (b'{\"status\": \"passed\", \"detail\": \"\"}\\n', b'passed\\n'):\n"
        "   try: os.write(fd, line)\n   except OSError: pass\n os._exit(0)",
        {"exited"},
    ),
    "forged frames": (
        "import json, os\ndef target(x):\n for value in ({'value': True},"
        " {'value': None, 'status': 'passed'}, 7, [], 'passed', {'value': ['?']}, {'value': 5, 'changed': {'0': 4}}):\n"
        "  data = json.dumps(value).encode()\n  os.write(3, len(data).to_bytes(8, 'big') + data)\n os._exit(0)",
        {"failed", "exited"},
    ),
    "endless frame": ("import os\ndef target(x):\n os.write(3, b'\\xff' * 8)\n os.write(3, b'[' * 10000)", {"exited"}),
    "deep frame": (
        "import os\ndef target(x):\n d = b'{\"value\":' + b'[' * 200000\n"
        " os.write(3, len(d).to_bytes(8, 'big') + d)\n os._exit(0)",
        {"exited"},
    ),
    "parent's secrets": (
        "import os, glob\ndef target(x):\n seen = [repr(dict(os.environ))]\n"
        " names = ('environ', 'cmdline', 'maps', 'fd/0')\n"
        " paths = [f'/proc/{p}/{n}' for p in (os.getppid(), 1, 'self') for n in names]\n"
        " for p in paths + glob.glob('/proc/*/environ'):\n"
        "  try: seen.append(open(p, 'rb').read(100000).decode('latin-1'))\n  except OSError: pass\n"
        f" raise ValueError('found' if {SECRET!r} in ' '.join(seen) else 'nothing')",
        {"exception"},
    ),
    "trace and signal others": (
        "import ctypes, os, signal\nlibc = ctypes.CDLL(None)\ndef target(x):\n me = os.getpid()\n"
        " for p in {os.getppid(), 1, *range(max(2, me - 20), me)} - {me}:\n"
        "  libc.ptrace(16, p, 0, 0); libc.ptrace(4, p, 0, 0)\n"
        "  if p != 1:\n   try: os.kill(p, 0); raise RuntimeError('can signal another process')\n"
        "   except (ProcessLookupError, PermissionError): pass\n"
        " return 5",
        {"failed", "exited", "exception"},
    ),
    "1 GB of output": ("def target(x):\n for _ in range(1 << 14): print('x' * (1 << 16))\n return 4", {"output"}),
    "1 GB of output, raw": (
        "import os\ndef target(x):\n while True: os.write(2, b'x' * (1 << 16))",
        {"output"},
    ),
    "1 GB of files": (
        "def target(x):\n for i in range(10**6):\n  with open(f'f{i}', 'wb') as f: f.write(b'x' * (3 << 20))\n"
        " return 5",
        {"exception", "timeout", "failed"},
    ),
    "file larger than allowed": (
        "def target(x):\n open('big', 'wb').write(b'x' * (64 << 20))\n return 4",
        {"exception"},
    ),
    "deletes outside its folder": (
        "import os, shutil\ndef target(x):\n"
        " for p in ('@CANARY@', '/tmp', '/var/tmp', '/dev/shm', '/home', '/root', '/work', '/etc', '..', '/'):\n"
        "  shutil.rmtree(p, ignore_errors=True)\n"
        " for p in ('@CANARY@/kept', '/tmp/owned-by-program', '/dev/shm/owned-by-program'):\n"
        "  for act in (lambda: open(p, 'w').write('owned'), lambda: os.remove(p), lambda: os.rename(p, 'mine'),"
        " lambda: os.link(p, 'mine'), lambda: os.symlink('/etc', p), lambda: os.chmod(p, 0)):\n"
        "   try: act()\n   except OSError: pass\n"
        " os.symlink('@CANARY@', 'link'); shutil.rmtree('link/', ignore_errors=True)\n"
        " os.makedirs('locked/in'); open('locked/in/f', 'w').close(); os.chmod('locked', 0)\n return 5",
        {"failed"},
    ),
    "opens a socket": (
        "import socket\ndef target(x):\n for make in (lambda: socket.create_connection(('127.0.0.1', @PORT@), 2),"
        " lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', @PORT@))):\n"
        "  try: make(); return 'connected'\n  except OSError: pass\n raise ConnectionError('no network')",
        {"exception"},
    ),
    "daemons": (
        "import os, time\ndef target(x):\n for _ in range(3):\n  if os.fork() == 0:\n   os.setsid()\n"
        "   if os.fork(): os._exit(0)\n   time.sleep(1000)\n return 5",
        {"failed"},
    ),
    "new namespaces": (
        "import ctypes\nlibc = ctypes.CDLL(None)\ndef target(x):\n"
        " return 'escaped' if any(libc.unshare(f) == 0 for f in (0x10000000, 0x20000, 0x20000000)) else 5",
        {"failed"},
    ),
}  # fmt: skip

ORDINARY = ["infinite loop", "fork bomb", "os._exit(0)", "forged verdict on every descriptor", "parent's secrets",
            "trace and signal others", "deletes outside its folder", "opens a socket", "daemons", "new namespaces",
            "1 GB of files"]  # fmt: skip


@pytest.fixture(scope="module")
def executor():
    try:
        return Executor(allow_code_execution=True, limits=LIMITS, packages=())
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture
def canary():
    """A folder anyone may write, with a file in it; both must survive."""
    folder = Path(tempfile.mkdtemp(prefix="canary-"))
    (folder / "kept").write_text("intact")
    folder.chmod(0o777)
    (folder / "kept").chmod(0o666)
    yield folder
    shutil.rmtree(folder)


def owners() -> dict[int, int]:
    """uid of every process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = entry.stat().st_uid
            except OSError:
                continue
    return found


def assert_no_process_of(uids):
    """Processes end before the verdict returns; the kernel may take a moment to remove them from /proc."""
    for _ in range(50):
        left = [pid for pid, uid in owners().items() if uid in uids]
        if not left:
            return
        time.sleep(0.05)
    raise AssertionError(f"processes left: {left}")


def has_ended(pid: int) -> bool:
    """Gone, or a zombie that its new parent has not collected, within some seconds."""
    for _ in range(100):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def attack(executor, name, canary, uids):
    program, expected = HOSTILE[name]
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.05)
        port = server.getsockname()[1]
        program = program.replace("@CANARY@", str(canary)).replace("@PORT@", str(port))
        started = time.monotonic()
        verdict = executor.run_untrusted(program, CHECKS, TIGHT if "timeout" in expected else LIMITS)
        took = time.monotonic() - started
        with pytest.raises(TimeoutError):
            server.accept()
    assert not verdict.passed
    assert verdict.status in expected, verdict
    assert "found" not in verdict.detail, verdict
    assert "can signal" not in verdict.detail, verdict
    assert took < LIMITS.wall_seconds + 30
    assert (canary / "kept").read_text() == "intact"
    assert (canary / "kept").stat().st_mode & 0o777 == 0o666
    assert sorted(os.listdir(canary)) == ["kept"]
    assert not Path("/tmp/owned-by-program").exists()
    assert not Path("/dev/shm/owned-by-program").exists()
    assert len(verdict.output_head) <= 2000
    assert_no_process_of(uids)


def watch_folders(monkeypatch, mode):
    made = []

    def make() -> str:
        made.append(tempfile.mkdtemp(prefix="smd-exec-"))
        os.chmod(made[-1], mode)
        return made[-1]

    monkeypatch.setattr(code_exec, "_make_folder", make)
    return made


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_program_fails_and_leaves_nothing(executor, canary, monkeypatch, name):
    monkeypatch.setenv("SMD_TEST_SECRET", SECRET)
    uid = 2_000_000_000 + 4 * os.getpid()
    monkeypatch.setattr(code_exec, "_random_uid", lambda: uid)
    made = watch_folders(monkeypatch, 0o711)
    attack(executor, name, canary, {uid, uid + 1} if "uid" in executor.mechanisms else set())
    assert len(made) == 1
    assert not Path(made[0]).exists()
    assert made[0] not in Path("/proc/self/mounts").read_text()


def system_python() -> str:
    for path in ("/usr/bin/python3", "/usr/local/bin/python3"):
        if os.path.exists(path):
            command = [path, "-S", "-c", "import sys; print(sys.version_info >= (3, 11))"]
            if subprocess.run(command, capture_output=True, text=True).stdout.strip() == "True":
                return path
    pytest.skip("no system Python >= 3.11 that an ordinary user may run")


QUICK_SAMPLE = ["forged verdict on every descriptor", "parent's secrets", "deletes outside its folder", "daemons"]


@pytest.mark.parametrize(
    ("mechanisms", "names"),
    [
        ("landlock+seccomp", QUICK_SAMPLE),
        ("namespaces+landlock+seccomp", QUICK_SAMPLE),
        pytest.param("landlock+seccomp", ORDINARY, marks=pytest.mark.slow),
        pytest.param("namespaces+landlock+seccomp", ORDINARY, marks=pytest.mark.slow),
        pytest.param("namespaces", ORDINARY, marks=pytest.mark.slow),
    ],
)
def test_hostile_programs_as_an_ordinary_user(canary, monkeypatch, mechanisms, names):
    """The supervisor itself is unprivileged here; without `namespaces` only Landlock, seccomp and limits help."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv to become an ordinary user; run the suite as one to test the same")
    python = system_python()
    user = ["setpriv", f"--reuid={ORDINARY_UID}", f"--regid={ORDINARY_UID}", "--clear-groups", "--inh-caps=-all"]
    command = [*user, python, "-S", "-s", str(code_exec._WORKER)]
    monkeypatch.setattr(code_exec, "_worker_command", lambda: command)
    monkeypatch.setenv("SMD_TEST_SECRET", SECRET)
    made = watch_folders(monkeypatch, 0o777)
    try:
        executor = Executor(
            allow_code_execution=True, limits=LIMITS, packages=(), mechanisms=tuple(mechanisms.split("+"))
        )
    except UserError as error:
        pytest.skip(str(error))
    for name in names:
        if mechanisms == "namespaces" and name == "new namespaces":
            continue  # allowed there: what it can reach is the private root it is in already
        attack(executor, name, canary, {ORDINARY_UID})
    assert not any(Path(folder).exists() for folder in made)


def test_everything_ends_with_the_caller(executor, monkeypatch, tmp_path):
    """The caller dies (its pipe closes): the supervisor ends the program and itself."""
    if "uid" not in executor.mechanisms:
        pytest.skip("processes are told apart by the uid that only root can give them")
    uid = 2_000_000_002 + 4 * os.getpid()
    monkeypatch.setattr(code_exec, "_random_uid", lambda: uid)
    jobs = []
    reply = {"status": "failed", "detail": "", "seconds": 0.0, "output": "", "isolation": []}
    monkeypatch.setattr(code_exec, "_ask_worker", lambda job, timeout: jobs.append(job) or reply)
    executor.run_untrusted("def target(x):\n while True: pass", CHECKS)
    os.mkdir(jobs[0]["folder"], 0o711)
    data = json.dumps(jobs[0]).encode()
    (tmp_path / "job").write_bytes(len(data).to_bytes(8, "big") + data)
    script = (
        "import os, subprocess, sys, time\n"
        "worker = subprocess.Popen(sys.argv[2:], stdin=-1, stdout=-1, env={})\n"
        "worker.stdin.write(open(sys.argv[1], 'rb').read()); worker.stdin.flush()\n"
        "time.sleep(0.5)\nprint(worker.pid, flush=True)\nos._exit(0)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "job"), *code_exec._worker_command()]
    pid = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert_no_process_of({uid, uid + 1})
    assert has_ended(pid)
    shutil.rmtree(jobs[0]["folder"])
