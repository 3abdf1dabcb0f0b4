"""The supervisor of one judged program: starts the confined processes, watches the limits, leaves nothing behind.

Started by `code_exec` with an emptied environment and without site packages; one frame in, one frame out. Its
children are the judge (`judge`) and, in a PID namespace of its own where possible, the program (`rpc`).
If standard input closes, the caller is gone and everything ends. Standard library only.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from sm_diffusion.evaluation.execution import sandbox as box
    from sm_diffusion.evaluation.execution.judge import judge
    from sm_diffusion.evaluation.execution.rpc import Channel
else:
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import sandbox as box
    from judge import judge
    from rpc import Channel

_PROGRAM_FD, _STATUS_FD = 3, 4
_TICK_MS = 100
_HERE = os.path.dirname(os.path.abspath(__file__))


def _mapped_files() -> list[str]:
    """Files this interpreter has mapped: its shared libraries, wherever they lie."""
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as file:
        paths = {line.split(maxsplit=5)[5].strip() for line in file if line.count("/")}
    return sorted(path for path in paths if path.startswith("/") and os.path.isfile(path))


def readable_paths(packages: list[str]) -> tuple[str, ...]:
    """What an interpreter needs: its tree, the system libraries, and the given package folders."""
    wanted = ["/usr", "/bin", "/lib", "/lib64", "/nix/store", "/etc/ld.so.cache"]
    wanted += [os.path.realpath(path) for path in (sys.base_prefix, sys.base_exec_prefix, sys.executable)]
    wanted += [os.path.join(_HERE, "rpc.py"), *packages, *_mapped_files()]
    wanted += ["/dev/null", "/dev/zero", "/dev/urandom"]
    kept: list[str] = []
    for path in wanted:
        inside = any(path == parent or path.startswith(parent + "/") for parent in kept if not os.path.islink(parent))
        if os.path.lexists(path) and not inside:
            kept.append(path)
    return tuple(kept)


def _tasks_of(uid: int) -> int:
    """Processes and threads the user has now: RLIMIT_NPROC counts them all where the uid is shared."""
    total = 0
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid == uid:
                total += len(os.listdir(f"/proc/{entry}/task"))
        except OSError:
            continue
    return total


def _confinement(job: dict[str, Any], role: str) -> box.Confinement:
    """Limits of the program, or of the judge, which gets time and memory beyond them: it must not fail first."""
    limits, extra = job["limits"], role == "judge"
    processes = int(limits["max_processes"])
    if "uid" not in job["mechanisms"]:  # the supervisor's own count too; a user namespace has a count of its own
        processes += 4 + (0 if "namespaces" in job["mechanisms"] else _tasks_of(os.getuid()))
    return box.Confinement(
        mechanisms=tuple(job["mechanisms"]),
        folder=os.path.join(job["folder"], role),
        readable=readable_paths(job["packages"]),
        listable=tuple(job["path"]),
        uid=int(job["uid"]) + extra,
        cpu_seconds=int(limits["wall_seconds"] if extra else limits["cpu_seconds"]) + 1 + extra,
        memory_mb=int(limits["memory_mb"]) + 1024 * extra,
        file_mb=int(limits["file_mb"]),
        max_processes=processes + extra,
    )


def _prepare_folder(spec: box.Confinement) -> None:
    os.makedirs(spec.folder, mode=0o711)
    if not spec.private_root:
        os.mkdir(spec.work, mode=0o700)
        if "uid" in spec.mechanisms:
            os.chown(spec.work, spec.uid, spec.uid)


def _child(work: Callable[[], None], status: int) -> int:
    """Fork. The child runs `work`, reports an exception on `status` and never returns."""
    pid = os.fork()
    if pid:
        return pid
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        work()
    except BaseException as error:  # the child must not fall into the supervisor's code
        os.write(status, json.dumps({"error": f"{type(error).__name__}: {error}"}).encode() + b"\n")
    os._exit(1)


def _keep_only(descriptors: dict[int, int]) -> None:
    """Give each source descriptor its target number, in increasing order from 0, and close all others."""
    copies = {target: os.dup(source) for target, source in descriptors.items()}  # above every target
    while min(copies.values()) <= max(descriptors):
        copies = {target: os.dup(copy) for target, copy in copies.items()}
    for target, copy in copies.items():
        os.dup2(copy, target)
    os.closerange(max(descriptors) + 1, 4096)


def _run_judge(job: dict[str, Any], spec: box.Confinement, descriptors: dict[int, int], parent: int) -> NoReturn:
    os.setsid()
    box.hide_memory()
    _keep_only(descriptors)
    if spec.private_root:
        box.enter_private_root(spec)
    box.drop_privileges(spec)
    box.die_with_parent(parent)
    status, detail = judge(_PROGRAM_FD, job)
    os.write(_STATUS_FD, json.dumps({"status": status, "detail": detail}).encode() + b"\n")
    os._exit(0)


def _run_program(job: dict[str, Any], spec: box.Confinement, descriptors: dict[int, int], parent: int) -> NoReturn:
    """Process 1 of the PID namespace (or a plain parent without one): waits for the program and reaps orphans."""
    os.setsid()
    box.hide_memory()
    box.die_with_parent(0 if spec.private_root else parent)
    _keep_only(descriptors)
    if spec.private_root:
        box.enter_private_root(spec)
    me = os.getpid()
    program = _child(lambda: _exec_program(spec, me), _STATUS_FD)
    os.closerange(0, 4096)
    while True:
        pid, status = os.wait()
        if pid == program:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _exec_program(spec: box.Confinement, parent: int) -> None:
    os.set_inheritable(_STATUS_FD, False)
    isolation = box.drop_privileges(spec)
    box.die_with_parent(parent)
    isolation += ["PID namespace"] if spec.private_root else []
    os.write(_STATUS_FD, json.dumps({"isolation": isolation}).encode() + b"\n")
    environment = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    environment |= {"HOME": spec.work, "TMPDIR": spec.work, "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
    environment |= {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
    environment |= {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1", "PYTHONIOENCODING": "utf-8"}
    command = [os.path.realpath(sys.executable), "-S", "-s", os.path.join(_HERE, "rpc.py"), str(_PROGRAM_FD)]
    os.execve(command[0], command, environment)


class _Watch:
    """Waits for the judge's verdict, the wall clock, too much output, or the caller's end, whichever is first."""

    def __init__(self, job: dict[str, Any], status: int, output: int) -> None:
        self.job, self.status, self.output = job, status, output
        self.head, self.seen, self.pending = b"", 0, b""
        self.notes: dict[str, Any] = {}

    def _read_output(self) -> bool:
        """Take what the program printed. False once it printed more than the limit."""
        data = os.read(self.output, 1 << 16)
        self.seen += len(data)
        if len(self.head) < 2000:
            self.head = (self.head + data)[:2000]
        return self.seen <= 1024 * float(self.job["limits"]["output_kb"])

    def _read_status(self) -> bool:
        """Take status lines. False at their end."""
        data = os.read(self.status, 1 << 16)
        *lines, self.pending = (self.pending + data).split(b"\n")
        for line in lines:
            self.notes.update(json.loads(line))
        return bool(data)

    def read_rest(self) -> None:
        """What is left in the pipe, once nobody can write to it any more."""
        while len(self.head) < 2000 and self.seen < 1 << 20 and (data := os.read(self.output, 1 << 16)):
            self.seen, self.head = self.seen + len(data), (self.head + data)[:2000]

    def wait(self) -> tuple[str, str]:
        start = time.monotonic()
        deadline = start + float(self.job["limits"]["wall_seconds"])
        poller = select.poll()
        for descriptor in (0, self.status, self.output):
            poller.register(descriptor, select.POLLIN)
        while "status" not in self.notes and "error" not in self.notes:
            if time.monotonic() > deadline:
                return "timeout", f"no verdict after {self.job['limits']['wall_seconds']} s of wall time"
            for descriptor, event in poller.poll(_TICK_MS):
                if descriptor == 0:
                    return "error", "the caller is gone"
                if descriptor == self.output and not event & select.POLLIN:
                    poller.unregister(self.output)
                elif descriptor == self.output and not self._read_output():
                    return "output", f"printed more than {self.job['limits']['output_kb']} KiB"
                elif descriptor == self.status and not self._read_status():
                    return "failed", "the tests' process died"
        if "error" in self.notes:
            return "error", f"sandbox: {self.notes['error']}"
        return str(self.notes["status"]), str(self.notes["detail"])


def _children() -> list[int]:
    """Process ids of the direct children, zombies included."""
    me, found = os.getpid(), []
    for entry in os.listdir("/proc"):
        try:
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                parent = int(file.read().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        if entry.isdigit() and parent == me:
            found.append(int(entry))
    return found


def _end_everything() -> None:
    """Kill and reap every descendant. As a subreaper this process inherits all orphans, whatever session they chose."""
    while True:
        for pid in _children():
            os.kill(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _limit_seen(status: str, detail: str, exit_code: int, seconds: float, limits: dict[str, Any]) -> tuple[str, str]:
    """A program ended by the CPU limit (SIGXCPU 24, then SIGKILL 9) timed out; it did not just exit."""
    killed = exit_code == 128 + signal.SIGKILL and seconds >= float(limits["cpu_seconds"])
    if status == "exited" and (exit_code == 128 + signal.SIGXCPU or killed):
        return "timeout", f"used more than {limits['cpu_seconds']} s of CPU time"
    return status, f"{detail} (exit code {exit_code})" if status == "exited" else detail


def _exit_code(pid: int, grace_seconds: float = 1.0) -> int:
    """Exit code of the program's parent if it ends by itself within the grace, else -1."""
    end = time.monotonic() + grace_seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return -1


def supervise(job: dict[str, Any]) -> dict[str, Any]:
    """Run one job to its verdict: {"status", "detail", "seconds", "output", "isolation"}."""
    me = os.getpid()
    box.become_subreaper()
    if "namespaces" in job["mechanisms"] and os.geteuid() != 0:
        box.enter_user_namespace()
    specs = {role: _confinement(job, role) for role in ("judge", "program")}
    for spec in specs.values():
        _prepare_folder(spec)
    ours, theirs = (end.detach() for end in socket.socketpair())
    (status_r, status_w), (output_r, output_w), null = os.pipe(), os.pipe(), os.open("/dev/null", os.O_RDWR)
    start = time.monotonic()
    for_judge = {0: null, 1: null, 2: null, _PROGRAM_FD: ours, _STATUS_FD: status_w}
    for_program = {0: null, 1: output_w, 2: output_w, _PROGRAM_FD: theirs, _STATUS_FD: status_w}
    _child(lambda: _run_judge(job, specs["judge"], for_judge, me), status_w)
    if specs["program"].private_root:
        box.unshare(box.NEWPID)  # of the next child
    program = _child(lambda: _run_program(job, specs["program"], for_program, me), status_w)
    for descriptor in (ours, theirs, status_w, output_w, null):
        os.close(descriptor)
    watch = _Watch(job, status_r, output_r)
    status, detail = watch.wait()
    seconds = time.monotonic() - start
    code = _exit_code(program) if status == "exited" else -1
    _end_everything()
    watch.read_rest()
    status, detail = _limit_seen(status, detail, code, seconds, job["limits"])
    reply = {"status": status, "detail": detail, "seconds": seconds, "isolation": watch.notes.get("isolation", [])}
    return {**reply, "output": watch.head.decode("utf-8", "replace")}


def probe() -> dict[str, Any]:
    """Which mechanisms are there; whether namespaces work, only a trial run tells."""
    works = {"uid": os.geteuid() == 0, "landlock": box.landlock_abi() > 0, "seccomp": box.seccomp_supported()}
    return {"mechanisms": [name for name, there in works.items() if there]}


if __name__ == "__main__":
    _channel = Channel(0)
    _job = _channel.receive()
    _channel.fd = 1
    _channel.send(probe() if _job["do"] == "probe" else supervise(_job))
